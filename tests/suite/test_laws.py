"""Every law over every method; what a case or a law is stands in `cases.py` and `laws.py`."""

import types
import warnings
from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import methods
from tests.suite import cases, laws
from tests.suite.cases import DESCENTS, HEAD_ONLY, METHODS

HEAD_FROZEN = {"body": {"w": True, "b": True}, "head": {"w": False, "b": False}}
BODY_FROZEN = {"body": {"w": False, "b": False}, "head": {"w": True, "b": True}}


@pytest.fixture(scope="module")
def case():
    return cases.dict_case()


def builders(package: types.ModuleType) -> set[str]:
    return {n for n, v in vars(package).items() if isinstance(v, types.FunctionType)}


def test_the_registry_has_every_public_builder():
    assert builders(methods) == set(METHODS)


def test_a_builder_that_is_missing_from_the_registry_is_noticed():
    package = types.ModuleType("methods")
    package.forgetful = lambda: None
    assert builders(package) - set(METHODS) == {"forgetful"}


# Several programs for each method: of the others their turn is with the slow tests.
DEAR = (laws.vmap_equals_loop_on_any_number_of_devices, laws.streams)
SOON = ("ssd", "gradient_ascent", "scrub")


def _is_slow(name: str, law: Callable) -> bool:
    """`tmu` trains four models in a run: one law says that it works, the others come later."""
    if name == "tmu":
        return law is not laws.keeps_tree_shapes_and_dtypes
    return law in DEAR and name not in SOON


def obedience() -> list:
    """Every method and every law."""
    return [
        pytest.param(
            name,
            law,
            id=f"{name}-{law.__name__}",
            marks=pytest.mark.slow if _is_slow(name, law) else (),
        )
        for name in METHODS
        for law in laws.LAWS
    ]


@pytest.mark.parametrize(("name", "law"), obedience())
def test_every_method_obeys(name, law, case):
    law(METHODS[name], cases.suited(name, case))


def kinds() -> list:
    """Every method on every kind of tree; `nnx.State` for most of them with the slow tests."""
    makers = {"tuple": cases.tuple_case, "nnx": cases.nnx_case}
    return [
        pytest.param(
            name,
            make,
            id=f"{name}-{kind}",
            marks=pytest.mark.slow if kind == "nnx" and name not in SOON else (),
        )
        for name in METHODS
        for kind, make in makers.items()
    ]


@pytest.mark.parametrize(("name", "make"), kinds())
def test_every_method_works_on_every_kind_of_tree(name, make):
    laws.keeps_tree_shapes_and_dtypes(METHODS[name], cases.suited(name, make()))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"retrain", "blind_model"}))
def test_no_method_moves_running_statistics(name):
    laws.leaves_statistics_alone(METHODS[name], cases.suited(name, cases.statistics_case()))


def test_retraining_makes_its_own_running_statistics():
    case = cases.statistics_case()
    out = laws.run(METHODS["retrain"], case)
    assert laws.different(out.params["batch_stats"], case.params["batch_stats"])


def test_a_frozen_model_with_statistics_is_traced_once_too():
    laws.traces_once(METHODS["finetune"], cases.statistics_case())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_masked_leaves_alone(name, case):
    mask = BODY_FROZEN if name in HEAD_ONLY else HEAD_FROZEN
    laws.leaves_masked_alone(ju.masked(METHODS[name], mask), cases.suited(name, case), mask)


def test_a_masked_method_is_traced_once(case):
    laws.traces_once(ju.masked(METHODS["neggrad_plus"], HEAD_FROZEN), case)


def test_a_jitted_method_is_traced_once(case):
    laws.jitted_once(METHODS["ssd"], case)


@pytest.mark.parametrize("verb", ["masked", "chain", "keep_best"])
def test_combined_methods_obey_the_same_laws(verb, case):
    made = {
        "masked": lambda: ju.masked(METHODS["finetune"], True),
        "chain": lambda: ju.chain(METHODS["ssd"], METHODS["finetune"]),
        "keep_best": lambda: ju.keep_best(
            METHODS["finetune"], lambda model, p: -p["body"]["b"].sum()
        ),
    }[verb]()
    for law in (
        laws.keeps_tree_shapes_and_dtypes,
        laws.vmap_equals_loop_on_any_number_of_devices,
        laws.leaves_inputs_alone,
        laws.reads_only_what_it_needs,
        laws.forgets_nothing_for_nothing,
    ):
        law(made, case)


ZERO = {
    "blindspot": ju.blindspot(blind_epochs=0, epochs=0),
    "gaussian_amnesiac": ju.gaussian_amnesiac(epochs=0),
    "l1_sparse": ju.l1_sparse(epochs=0),
    "unsir": ju.unsir(samples=2, noise_steps=0, impair_epochs=0, repair_epochs=0),
    "boundary_shrink": ju.boundary_shrink(epochs=0),
    "boundary_expand": ju.boundary_expand(epochs=0),
    "shrink_perturb": ju.shrink_perturb(epochs=0),
    "finetune": ju.finetune(epochs=0),
    "entanglement": ju.entanglement(epochs=0, recovery_epochs=0),
    "forsaken": ju.forsaken(steps=0),
    "gradient_ascent": ju.gradient_ascent(epochs=0),
    "info_theoretic": ju.info_theoretic(epochs=0),
    "jit_lipschitz": ju.jit_lipschitz(epochs=0),
    "mox": ju.mox(epochs=0),
    "neggrad_plus": ju.neggrad_plus(epochs=0),
    "random_labels": ju.random_labels(epochs=0),
    "pgu": ju.pgu(epochs=0),
    "hamu": ju.hamu(epochs=0),
    "salun": ju.salun(epochs=0),
    "scrub": ju.scrub(epochs=0),
    "bad_teacher": ju.bad_teacher(epochs=0),
    "amnesiac": ju.amnesiac(epochs=0),
    "pseudo_label": ju.pseudo_label(epochs=0),
    "tmu": ju.tmu(epochs=0, twin_epochs=0, short_epochs=0, judge_epochs=0, attack_steps=0),
    "cf_k": ju.cf_k(epochs=0),
    "descent": ju.descent(ju.objectives.ascent, optax.adam(1.0), steps=0, on=("forget",)),
}


def test_no_epochs_no_change(case):
    assert set(ZERO) == set(DESCENTS)
    for name, method in ZERO.items():
        laws.bits(laws.run(method, cases.suited(name, case)).params, case.params)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_bad_input_by_name(name, case):
    method, case = METHODS[name], cases.suited(name, case)
    model, params, request, key = case.model, case.params, case.request, laws.KEY
    broken = jax.tree.map(lambda p: p.at[0].set(np.nan), params)
    with pytest.raises(ValueError, match=r"params\['body'\]\['b'\] holds NaN or Inf"):
        method.unlearn(model, broken, request, key)
    both = request._replace(retain=request.forget)
    with pytest.raises(ValueError, match="forget and retain overlap in 8 ids, first 100"):
        method.unlearn(model, params, both, key)
    with pytest.raises(TypeError, match=f"{name}: expected one typed key.*uint32"):
        method.unlearn(model, params, request, np.zeros(2, np.uint32))
    with pytest.raises(TypeError, match=f"{name}: expected a jaxunlearn Model"):
        method.unlearn(None, params, request, key)
    with pytest.raises(TypeError, match=f"{name}: expected a Request"):
        method.unlearn(model, params, request.forget, key)
    for field in {"forget", "retain"} & method.needs:
        wrong = getattr(request, field).replace(y=np.full(getattr(request, field).num_examples, 3))
        if "labels" in method.needs and name not in cases.REGRESSIONS:
            with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\).*row 0 has 3"):
                method.unlearn(model, params, request._replace(**{field: wrong}), key)
        with pytest.raises(ValueError, match=f"{name} needs request.{field}, which is None"):
            method.unlearn(model, params, request._replace(**{field: None}), key)


def test_a_warning_is_an_error_in_this_suite():
    with pytest.raises(UserWarning):
        warnings.warn("strict", UserWarning, stacklevel=1)
