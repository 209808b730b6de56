"""Certificates: the formula, every reason to withhold one, the budget, and the noise itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

import jaxunlearn as ju
from jaxunlearn.data import from_batches
from jaxunlearn.data.streams import InMemory
from jaxunlearn.methods.edits import certificate as certificates
from jaxunlearn.methods.edits.certificate import (
    Terms,
    Verdict,
    certificate,
    explain,
    perturbation,
    perturbed_objective,
    required_sigma,
)
from jaxunlearn.methods.edits.features_labels import features_labels

L2, SIGMA = 2.0, 0.5
KEY = jax.random.key(3)


def loss(theta, batch):
    return jax.nn.softplus(-batch["y"] * (batch["x"] @ theta))


MODEL = ju.Model(outputs=lambda p, b: b["x"] @ p, loss=loss, init=lambda key: jnp.zeros(3))


def columns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    return x, np.sign(x[:, 0] + 0.5 * rng.standard_normal(40))


def data(indices=slice(None), batch_size=16):
    x, y = columns()
    return InMemory({"x": jnp.asarray(x[indices]), "y": jnp.asarray(y[indices])}, batch_size)


def optimum(indices, b):
    """The minimiser of the perturbed objective, by Newton in NumPy."""
    x, y = (each[indices] for each in columns())
    theta = np.zeros(3)
    for _ in range(30):
        s = 1 / (1 + np.exp(y * (x @ theta)))
        gradient = -x.T @ (y * s) + L2 * theta + np.asarray(b)
        theta -= np.linalg.solve((x.T * (s * (1 - s))) @ x + L2 * np.eye(3), gradient)
    return jnp.asarray(theta)


def b_of_training():
    return perturbation(KEY, jnp.zeros(3), SIGMA)


def terms(**changes):
    made = Terms(1.0, 0.01, SIGMA, b_of_training(), convex=True)
    return made._replace(**changes)


def certified(model=MODEL, theta=None, made=None, l2=L2, parts=None):
    theta = optimum(slice(None), b_of_training()) if theta is None else theta
    parts = [data()] if parts is None else parts
    return certificate(model, theta, parts, terms() if made is None else made, l2=l2)


# ---------------------------------------------------------------------------------- the formula


def test_8_the_noise_needed_grows_with_the_residual_and_the_privacy():
    base = required_sigma(1.0, 0.1, 0.01)
    np.testing.assert_allclose(base, 31.66, rtol=1e-3)  # the published c = 3.166
    assert required_sigma(2.0, 0.1, 0.01) == pytest.approx(2 * base)
    assert required_sigma(1.0, 0.2, 0.01) == pytest.approx(base / 2)
    assert required_sigma(1.0, 0.1, 0.001) > base
    assert required_sigma(0.0, 0.1, 0.01) == 0


def test_the_formula_hides_a_shift_of_a_gaussian():
    """delta as the tail of the exact Gaussian mechanism, in the range epsilon <= 1."""
    for epsilon in (0.1, 0.5, 1.0):
        for delta in (1e-2, 1e-5):
            s = required_sigma(1.0, epsilon, delta)
            exact = norm.cdf(0.5 / s - epsilon * s) - np.exp(epsilon) * norm.cdf(
                -0.5 / s - epsilon * s
            )
            assert exact <= delta
            less = s / 4  # a mutant with a quarter of the noise leaks (the bound is loose)
            assert norm.cdf(0.5 / less - epsilon * less) - np.exp(epsilon) * norm.cdf(
                -0.5 / less - epsilon * less
            ) > delta  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0, 0.1), r"expected epsilon > 0 and delta in \(0, 1\), got epsilon=0"),
        ((1.0, 1.0, 1.0), "delta=1"),
        ((-1.0, 1.0, 0.1), "expected a residual >= 0, got -1"),
        ((float("nan"), 1.0, 0.1), "got nan"),
    ],
)
def test_constants_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        required_sigma(*arguments)


def test_a_builder_refuses_terms_out_of_range():
    with pytest.raises(ValueError, match="features_labels: expected epsilon > 0"):
        features_labels(certify=terms(epsilon=-1.0))


# ------------------------------------------------------------------------------ granted or withheld


def test_at_the_exact_optimum_the_residual_is_nothing_and_the_certificate_granted(x64):
    got = certified()
    assert got.status == Verdict.GRANTED and got.residual < 1e-12
    assert got.smallest >= L2
    np.testing.assert_allclose(got.allowed, SIGMA / np.sqrt(2 * np.log(150)))
    assert explain(got).startswith("certified(1, 0.01) granted (spent ")
    assert "non-adaptive" in explain(got)


def test_the_residual_is_the_full_gradient_with_regulariser_and_perturbation(x64):
    theta, (x, y), b = jnp.array([0.3, -0.2, 0.1]), columns(), b_of_training()
    s = 1 / (1 + np.exp(y * (x @ theta)))
    expected = np.linalg.norm(-x.T @ (y * s) + L2 * theta + b)
    for parts in ([data()], [data(slice(0, 7)), data(slice(7, 40))]):
        np.testing.assert_allclose(certified(theta=theta, parts=parts).residual, expected)


def test_training_that_stopped_early_is_in_the_residual(x64):
    early = optimum(slice(None), b_of_training()) + 0.1
    got = certified(theta=early)
    assert got.status == Verdict.BUDGET_EXHAUSTED and got.residual > got.allowed
    assert explain(got).endswith("retrain (spent "
                                 f"{got.spent:.3g} of {got.allowed:.3g}).")  # fmt: skip


def single_loss(theta, batch):
    return loss(theta, batch).astype(jnp.float32)


def flat(theta, batch):
    """Indefinite everywhere."""
    return -jnp.square(batch["x"] @ theta)


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"made": {"sigma": 0.0}}, Verdict.NO_NOISE, "no noise"),
        ({"made": {"convex": False}}, Verdict.NOT_CLAIMED_CONVEX, "nobody claims"),
        ({"l2": 0.0}, Verdict.NOT_CONVEX, "not strongly convex"),
        ({"loss": flat}, Verdict.NOT_CONVEX, "eigenvalue below l2"),
        ({"theta": [np.nan, 0, 0]}, Verdict.NONFINITE, "NaN or Inf"),
        ({"loss": single_loss}, Verdict.SINGLE_PRECISION, "float64"),
    ],
)  # fmt: skip
def test_every_assumption_withholds_the_certificate_with_its_reason(x64, change, verdict, words):
    model = dataclasses.replace(MODEL, loss=change.get("loss", loss))
    theta = None if "theta" not in change else jnp.asarray(change["theta"])
    got = certified(model, theta, terms(**change.get("made", {})), change.get("l2", L2))
    assert got.status == verdict and words in explain(got) and "withheld" in explain(got)


def test_single_precision_is_not_enough():
    theta = jnp.zeros(3)
    got = certificate(MODEL, theta, [data()], terms(), l2=L2)
    assert got.status == Verdict.SINGLE_PRECISION


def test_a_model_too_large_to_be_checked_is_not_certified(x64, monkeypatch):
    monkeypatch.setattr(certificates, "DENSE_LIMIT", 2)
    got = certified()
    assert got.status == Verdict.TOO_LARGE and np.isnan(got.smallest)


def test_a_network_that_claims_to_be_convex_is_found_out(x64):
    def outputs(p, batch):
        return jnp.tanh(batch["x"] @ p["w"]) @ p["v"]

    rng = np.random.default_rng(1)
    theta = {
        "w": jnp.asarray(rng.standard_normal((3, 4))),
        "v": jnp.asarray(rng.standard_normal(4)),
    }
    model = ju.Model(outputs=outputs, loss=lambda p, b: jnp.square(outputs(p, b) - b["y"]))
    zeros = jax.tree.map(jnp.zeros_like, theta)
    got = certificate(model, theta, [data()], terms(perturbation=zeros), l2=0.01)
    assert got.status == Verdict.NOT_CONVEX and got.smallest < 0.01


def test_a_stream_has_the_same_residual(x64):
    x, y = columns()
    stream = from_batches([{"x": x[i : i + 16], "y": y[i : i + 16]} for i in (0, 16, 32)])
    theta = jnp.array([0.3, -0.2, 0.1])
    inside, outside = certified(theta=theta), certified(theta=theta, parts=[stream])
    np.testing.assert_allclose(outside.residual, inside.residual, rtol=1e-9)
    np.testing.assert_allclose(outside.smallest, inside.smallest, rtol=1e-9)


def test_a_certificate_can_be_jitted_with_sigma_as_a_value(x64):
    @jax.jit
    def run(theta, sigma):
        return certificate(MODEL, theta, [data()], terms(sigma=sigma), l2=L2).status

    theta = optimum(slice(None), b_of_training())
    assert run(theta, 1.0) == Verdict.GRANTED and run(theta, 0.0) == Verdict.NO_NOISE


# ------------------------------------------------------------------------ the method and its budget


def test_requests_spend_one_budget_until_it_is_exhausted(x64):
    """Twelve rows, three at a time; sigma covers about half of them."""
    b, theta = b_of_training(), optimum(slice(None), b_of_training())
    seen, gone, spent = [], 0, 0.0
    for _ in range(4):
        request = ju.Request(data(slice(gone, gone + 3)), data(slice(gone + 3, 40)))
        out = features_labels(
            solver="cholesky", l2=L2, certify=terms(spent=spent, sigma=0.1)
        ).unlearn(MODEL, theta, request, KEY)
        theta, gone, got = out.params, gone + 3, out.info.certificate
        np.testing.assert_allclose(got.spent, spent + got.residual)
        np.testing.assert_allclose(got.residual, out.info.gradient_after, rtol=1e-8)
        spent = float(got.spent)
        seen.append(int(got.status))
        assert np.linalg.norm(theta - optimum(slice(gone, 40), b)) <= got.residual / L2 + 1e-12
    assert seen == sorted(seen) and seen[0] == Verdict.GRANTED
    exhausted = terms(spent=spent, sigma=spent / 10)
    out = features_labels(solver="cholesky", l2=L2, certify=exhausted).unlearn(
        MODEL, theta, ju.Request(data(slice(gone, gone + 1)), data(slice(gone + 1, 40))), KEY
    )
    assert out.info.certificate.status == Verdict.BUDGET_EXHAUSTED
    assert "retrain" in explain(out.info.certificate)


def test_second_order_needs_less_noise_than_first_order(x64):
    request = ju.Request(data(slice(0, 3)), data(slice(3, 40)))
    theta = optimum(slice(None), b_of_training())
    second, first = (
        features_labels(order=order, solver="cholesky", tau=0.05, l2=L2, certify=terms())
        .unlearn(MODEL, theta, request, KEY).info.certificate.residual
        for order in (2, 1)
    )  # fmt: skip
    assert required_sigma(second, 1, 0.01) < required_sigma(first, 1, 0.01) / 3


# --------------------------------------------------------------------- training with a perturbation


def test_the_perturbation_is_normal_keyed_and_of_the_given_size():
    like = {"a": jnp.zeros(4000), "b": jnp.zeros((10, 100))}
    b = perturbation(KEY, like, 3.0)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(b)])
    assert abs(flat.std() - 3) < 0.1 and abs(flat.mean()) < 0.15
    np.testing.assert_array_equal(b["a"], perturbation(KEY, like, 3.0)["a"])
    assert not np.array_equal(b["a"], perturbation(jax.random.key(4), like, 3.0)["a"])


def test_training_on_the_perturbed_objective_reaches_its_optimum(x64):
    b = b_of_training()
    objective = perturbed_objective(MODEL, 40, l2=L2, b=b)
    out = ju.fit(objective, optax.sgd(1.0), jnp.zeros(3), data(batch_size=40), key=KEY, steps=300)
    np.testing.assert_allclose(out.params, optimum(slice(None), b), rtol=1e-6)
    assert certified(theta=out.params).status == Verdict.GRANTED
    unperturbed = certified(theta=out.params, made=terms(perturbation=jnp.zeros(3)))
    np.testing.assert_allclose(unperturbed.residual, np.linalg.norm(b), rtol=1e-6)
