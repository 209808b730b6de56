"""The benchmark of the Fisher diagonal: the twins do one job, and the counts and ratios are right.

The largest networks are built small; what is slow to compile is compared without compiling it.
"""

import copy
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import curvature, curvature_floor, curvature_measure
from experiments.benchmarks import curvature_networks as networks
from experiments.benchmarks import curvature_programs as programs
from experiments.benchmarks.curvature_section import curvature_price
from experiments.benchmarks.floor import training_flops

TINY = {
    "mlp": {"n": 3, "width": 4},
    "small_resnet": {"n": 3, "width": 4, "side": 8},
    "resnet18": {"n": 3, "width": 4, "side": 8},
    "vit": {"n": 3, "dim": 8, "depth": 1, "heads": 2, "side": 8},
    "decoder": {"n": 3, "dim": 8, "depth": 1, "heads": 2, "tokens": 6, "vocabulary": 7},
}
TINY["decoder_tied"] = TINY["decoder"]


def twin(name):
    torch = pytest.importorskip("torch", reason="PyTorch is optional: a rival of a benchmark")
    from experiments.benchmarks import curvature_torch

    torch.set_num_threads(1)
    network = networks.build(name, TINY[name])
    weights = networks.as_torch(network.params)
    model = curvature_torch.build(name, networks.all_sizes(name, TINY[name]), weights)
    return curvature_torch, network, model, *curvature_torch.tensors(network.batch)


def by_rows(torch_side, model, x, y):
    """sum_i g_i^2 by an ordinary backward pass for every row."""
    rows = [torch_side.gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return {key: sum(row[key].square() for row in rows).numpy() for key in rows[0]}


# Networks


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit", "decoder", "decoder_tied"])
def test_a_twin_in_pytorch_is_the_same_function(name):
    torch_side, network, model, x, y = twin(name)
    ours = jax.jit(network.loss_fn)(network.params, network.batch)
    rows = [torch_side.summed_loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(3)]
    theirs = [row.item() for row in rows]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "vit", "decoder_tied"])
def test_weights_carry_over_by_name_so_gradients_do_too(name):
    torch_side, network, model, x, y = twin(name)
    loss = jax.jit(jax.grad(lambda params: network.loss_fn(params, network.batch).sum()))
    ours = networks.as_torch(loss(network.params))
    theirs = torch_side.gradient(model, x, y)
    assert ours.keys() == theirs.keys()
    for key, leaf in ours.items():
        np.testing.assert_allclose(theirs[key], leaf, rtol=1e-4, atol=1e-5, err_msg=key)


def test_both_convolutions_are_the_same_network():
    ours = networks.build("small_resnet", TINY["small_resnet"])
    other = networks.build("small_resnet", TINY["small_resnet"], lax_conv=True)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours.loss_fn)(ours.params, ours.batch))
    traced = jax.make_jaxpr(other.loss_fn)(other.params, other.batch)
    assert str(traced).count("conv_general_dilated[") == 20
    values = [jax.jit(each.loss_fn)(each.params, each.batch) for each in (ours, other)]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_the_named_networks_have_the_sizes_that_were_asked_for():
    def parameters(name):
        return networks.count(jax.eval_shape(lambda: networks.build(name).params))

    mlp = 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10
    block = 4 * (192 * 192 + 192) + 2 * 4 * 192 * 192 + 4 * 192 + 192 + 4 * 192
    assert parameters("mlp") == mlp
    assert parameters("resnet18") == 11173962
    assert parameters("vit") == 6 * block + 48 * 192 + 192 + 65 * 192 + 3 * 192 + 1930
    assert parameters("decoder") - parameters("decoder_tied") == 1000 * 256


def test_an_unknown_network_or_size_is_named():
    with pytest.raises(ValueError, match="unknown network 'mpl': expected one of mlp"):
        networks.build("mpl")
    with pytest.raises(ValueError, match="'mlp' has the sizes n, width; it has no 'depth'"):
        networks.build("mlp", {"depth": 3})


# Rivals


@pytest.mark.parametrize("name", ["mlp", "small_resnet", "vit", "decoder", "decoder_tied"])
def test_every_rival_computes_the_sum_of_squares(name):
    torch_side, _, model, x, y = twin(name)
    expected = by_rows(torch_side, model, x, y)
    found = [torch_side.vmap_squares(model, x, y), torch_side.vmap_squares(model, x, y, 2)]
    if name != "decoder_tied":
        pytest.importorskip("backpack", reason="BackPACK is optional: a rival of a benchmark")
        found.append(torch_side.backpack_squares(model)(x, y))
    for squares in found:
        arrays = {key: value.numpy() for key, value in squares.items()}
        assert programs.disagreement(arrays, expected) < 1e-4


def test_leaves_that_share_one_gradient_do_not_square_it_twice():
    """The class token's gradient is a view of the positions' one inside `torch.func`."""
    torch_side, _, model, x, y = twin("vit")
    found, expected = torch_side.vmap_squares(model, x, y), by_rows(torch_side, model, x, y)
    for key in ("cls.weight", "positions.weight"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4)


def test_backpack_refuses_a_weight_that_is_used_twice():
    torch_side, _, model, *_ = twin("decoder_tied")
    with pytest.raises(NotImplementedError, match="used twice"):
        torch_side.backpack_squares(model)


def test_a_wrong_square_is_noticed_and_a_square_of_rounding_is_not():
    reference = {"a": np.array([1.0, 1e-3]), "zero": np.array([1e-15])}
    assert programs.disagreement(reference, reference) == 0
    other = copy.deepcopy(reference) | {"zero": np.array([5e-15])}
    assert programs.disagreement(other, reference) < 1e-6
    other["a"] = reference["a"] * 3  # a forgotten 1 / n
    assert programs.disagreement(other, reference) == pytest.approx(2)
    with pytest.raises(ValueError, match="expected the leaves of the reference"):
        programs.disagreement({"a": reference["a"]}, reference)


# Floor


def test_flops_are_counted_as_on_paper():
    network = networks.build("mlp", {"n": 5, "width": 16})
    counted = curvature_floor.matmul_flops(
        jax.grad(lambda params: network.loss_fn(params, network.batch).sum()), network.params
    )
    assert counted == training_flops(5, (784, 16, 16, 10))


def test_flops_of_loops_branches_and_convolutions_are_counted():
    a, count = jnp.ones((4, 4)), curvature_floor.matmul_flops
    one = 2 * 4**3
    assert count(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0], a) == 7 * one
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)  # noqa: E731
    assert count(either, a) == 2 * one
    assert count(jax.checkpoint(jax.jit(lambda a: a @ a)), a) == one
    x, w = jnp.ones((2, 5, 8, 8)), jnp.ones((3, 5, 3, 3))
    convolved = 2 * (2 * 3 * 6 * 6) * (5 * 3 * 3)
    assert count(lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"), x, w) == convolved


def test_the_floor_of_the_diagonal_is_above_that_of_the_gradient(monkeypatch):
    monkeypatch.setattr(curvature_floor, "matmul_rate", lambda *shape: 1e9)
    monkeypatch.setattr(curvature_floor, "bandwidth", lambda: 1e15)
    network = networks.build("mlp", {"n": 5, "width": 16})
    found = curvature_floor.floor(network)
    assert found["gradient"] == training_flops(5, (784, 16, 16, 10)) / 1e9
    squares = 2 * 5 * networks.count(network.params) / 1e9
    assert found["fisher"] == pytest.approx(found["gradient"] + squares)
    monkeypatch.setattr(curvature_floor, "bandwidth", lambda: 1e3)  # now memory is what limits
    bytes_read = 12 * networks.count(network.params) + 4 * 5 * 785
    assert curvature_floor.floor(network)["gradient"] == pytest.approx(bytes_read / 1e3)


def test_a_bandwidth_is_that_of_a_computer():
    assert 1e7 < curvature_floor.bandwidth(megabytes=1, repeats=2) < 1e15


# Measuring


def test_a_turn_leaves_out_its_first_call_unless_it_is_the_only_one():
    calls = iter([0.03, 0.001, 0.001, 0.03])
    assert curvature_measure.turn(lambda: time.sleep(next(calls)), 0.0305, pause=0) < 0.01
    assert curvature_measure.turn(lambda: time.sleep(0.03), 0.01, pause=0) >= 0.03


def test_a_ratio_is_taken_within_its_turn():
    """A machine that is twice as slow in one turn is so for both."""
    assert curvature_measure.ratio([2.0, 4.0, 2.2], [1.0, 2.0, 1.0])["value"] == 2.0


def test_peak_memory_counts_what_a_call_takes_and_gives_back_even_after_a_larger_one():
    def take(megabytes):
        return lambda: float(np.ones(megabytes * 2**17).sum())

    take(300)()
    results = [curvature_measure.peak(take(megabytes)) for megabytes in (60, 120)]
    if results[0][1] is None:
        pytest.skip("only Linux tells the peak of a process")
    for (result, most), megabytes in zip(results, (60, 120), strict=True):
        assert result == megabytes * 2**17
        assert 0.95 * megabytes * 2**20 < most < 1.3 * megabytes * 2**20


def test_only_the_kinds_that_were_asked_for_are_compiled():
    network = networks.build("mlp", TINY["mlp"])
    made = programs.ours(network, ("gradient", "ours", "reference"))
    assert [program.of for program in made] == ["gradient", "ours", "ours", "reference"]
    squares = [p.squares(p.run()) for p in made if p.squares]
    for each in squares:
        assert programs.disagreement(each, squares[-1]) < 1e-5
    timed = curvature_measure.timed(made, turns=2, seconds=0.0)
    assert timed[0]["ratio"] == timed[0]["of_fastest"] == {"value": 1, "low": 1, "high": 1}
    for record in timed[1:]:
        expected = [a / b for a, b in zip(record["turns"], timed[0]["turns"], strict=True)]
        assert record["ratio"]["value"] == pytest.approx(statistics.median(expected))
        assert record["xla"]["output"] > 0 and record["compile"] > 0


# The record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a run of the whole command with one tiny network writes; its timing runs in here."""
    folder, fresh_process = tmp_path_factory.mktemp("curvature"), curvature.run_child

    def run_child(asked, environment=None):
        if asked["mode"] == "once":
            return fresh_process(asked, environment)
        return json.loads(json.dumps(curvature_measure.child(asked)))

    arguments = "--network mlp --size n=3 width=4 --turns 2 --turn-seconds 0 --growth-n 2"
    arguments += f" --growth-width --out {folder}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(curvature, "run_child", run_child)
        patched.setattr(curvature_floor, "bandwidth", lambda: 1e10)
        patched.setattr(curvature_floor, "matmul_rate", lambda *shape: 1e11)
        assert curvature.main(arguments.split()) == 0
    return json.loads((folder / "curvature.json").read_text())


def test_the_whole_command_writes_a_record_with_every_number(made):
    assert (made["kind"], made["schema"]) == (curvature.KIND, curvature.SCHEMA)
    assert "--size n=3 width=4" in made["command"] and "--growth-n 2" in made["command"]
    (network,) = made["networks"]
    assert network["parameters"] == 784 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10
    names = [program["program"] for program in network["programs"]]
    assert names[:2] == ["gradient", curvature.FISHER]
    for program in network["programs"]:
        assert program["seconds"] == statistics.median(program["turns"]) > 0
        if program["of"] != "gradient":
            assert program["disagreement"] < 1e-4
    assert sum(network["routes"].values()) == 6 and network["fallbacks"] == {}
    assert network["floor"]["fisher"] > network["floor"]["gradient"] > 0
    assert [point["sizes"] for point in made["growth"]["n"]] == [{"n": 2, "width": 4}]
    assert made["growth"]["parameters"] == []


def test_the_section_says_what_the_record_says(made):
    made = copy.deepcopy(made)
    network = made["networks"][0]
    fisher = curvature.program(network, curvature.FISHER)
    unit = curvature.program(network, "gradient")
    plain = curvature.program(network, "jax.vmap(jax.grad)")
    fisher["ratio"] = {"value": 1.25, "low": 1.1, "high": 1.4}
    fisher["turns"], plain["turns"] = [2.0, 4.0], [14.0, 28.0]
    unit["xla"] = {"arguments": 0, "output": 100, "temporary": 50}
    fisher["xla"] = {"arguments": 0, "output": 100, "temporary": 50 + 8 * network["parameters"]}
    text = " ".join(curvature_price(made).split())
    assert made["command"] in text
    assert f"| `mlp` | {network['parameters']} | 3 | 1.25 [1.10, 1.40] | 1.3 | 2.00 | 3 |" in text
    assert "| 7.00 |" in text
    assert "Slower than asked: none." in text and "More memory than asked: none." in text
    assert "All squares agree" in text and "DISAGREE" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["ratio"].update(value=1.31), "Slower than asked: `mlp`."),
        (lambda p: p["xla"].update(temporary=10**9), "More memory than asked: `mlp`."),
        (lambda p: p.update(turns=[99.0, 99.0]), "Not faster than: own vmap on `mlp`"),
        (lambda p: p.update(disagreement=0.5), "**The squares DISAGREE**: `fisher_diagonal`"),
    ],
)
def test_a_goal_that_was_missed_is_said_to_be_missed(made, change, words):
    made = copy.deepcopy(made)
    change(curvature.program(made["networks"][0], curvature.FISHER))
    assert words in " ".join(curvature_price(made).split())


def test_a_rival_that_could_not_run_is_named_with_its_reason(made):
    made = copy.deepcopy(made)
    network = made["networks"][0]
    network["left_out"] = {"BackPACK": "a reason"}
    network["programs"] = [p for p in network["programs"] if p["of"] != "BackPACK"]
    assert curvature.speed_up(network, "BackPACK") is None
    assert "Could not be run: BackPACK on `mlp` (a reason)." in curvature_price(made)
    assert "BackPACK: not run: a reason" in curvature.table(network)


def test_a_leaf_that_is_squared_example_by_example_is_named_with_its_reason(made):
    made = copy.deepcopy(made)
    made["networks"][0]["fallbacks"] = {"['b']": "an odd one"}
    assert "`['b']`: an odd one." in curvature_price(made)
    assert "['b']: by examples: an odd one" in curvature.table(made["networks"][0])


def test_without_pytorch_ours_is_timed_alone(monkeypatch):
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    network = networks.build("mlp", TINY["mlp"])
    assert programs.rivals("mlp", TINY["mlp"], network, 1) == (
        [],
        {"torch.func": programs.NO_TORCH, "BackPACK": programs.NO_TORCH},
    )


def test_a_child_that_fails_says_why():
    with pytest.raises(RuntimeError, match="(?s)measuring 'mpl' .time. ended with status 1.*unkn"):
        curvature.run_child({"network": "mpl", "sizes": {}, "mode": "time", "kinds": [],
                             "seed": 0, "threads": 1})  # fmt: skip


def test_a_size_that_is_no_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        curvature.main(["--size", "n=few"])
    assert "expected NAME=NUMBER" in capsys.readouterr().err
