"""Selection, seen from outside: what is chosen, what is refused, and what is said about it."""

from __future__ import annotations

import asyncio
import re
import threading

import numpy as np
import pytest

import convjit
from convjit import calls, config, dispatch
from convjit.arguments import Request
from convjit.precision import Policy
from convjit.spec import ConvSpec

X, W = (1, 16, 32, 32), (16, 16, 3, 3)
SPEC = ConvSpec.forward(X, W, padding=1)


def request(packed=True, algorithm=None, **policy):
    return Request(backend="null", algorithm=algorithm, policy=Policy(**policy), packed=packed)


def ranking(**options):
    rows = dispatch.candidates(SPEC, request(**options))
    return [row.solver_id.removeprefix("null.") for row in rows if row.refusal is None]


def refusals(**options):
    rows = dispatch.candidates(SPEC, request(**options))
    return {r.solver_id.removeprefix("null."): str(r.refusal) for r in rows if r.refusal}


def test_the_fastest_by_the_model_comes_first(solvers):
    assert ranking() == ["winograd", "gemm", "loose", "direct"]


def test_packing_counts_where_it_is_paid_each_time(solvers):
    assert ranking(packed=False) == ["loose", "direct", "gemm", "winograd"]


def test_exact_admits_summation_alone(solvers):
    assert ranking(precision="exact") == ["gemm", "loose", "direct"]
    assert set(refusals(precision="exact")) == {"winograd", "tf32"}


def test_fast_admits_narrow_operands(solvers):
    assert ranking(precision="fast")[0] == "tf32"


def test_local_puts_what_spreads_behind_a_finite_check(solvers):
    first = dispatch.candidates(SPEC, request(nonfinite="local"))[0]
    assert first.label == "finite check + null.winograd"
    assert first.work.phases[-1].name == "finite check"
    assert not first.work.numerics.spreads_nonfinite


def test_a_forced_spreader_borrows_a_local_solver_for_the_check(solvers):
    assert ranking(nonfinite="local", algorithm="winograd") == ["winograd"]


def test_nothing_local_is_allowed(solvers):
    with convjit.use(disable=("null.direct", "null.gemm", "null.loose", "null.tf32")):
        said = refusals(nonfinite="local")["winograd"]
    assert said == (
        "nonfinite='local' was asked; it spreads a NaN or Inf, and nothing else is allowed that "
        "would keep them local"
    )


def test_deterministic_excludes_what_is_not(solvers):
    assert "loose" not in ranking(deterministic=True)


def test_workspace_limit_says_both_numbers(solvers):
    said = refusals(workspace_limit=1000)["gemm"]
    assert said == "needs a workspace of 1048576 bytes, workspace_limit is 1000"


def test_block_sizes_that_fit_take_the_defaults_place(solvers, monkeypatch):
    gemm = type(solvers["gemm"])
    small, smallest = (("tile", 8),), (("tile", 2),)

    def workspace_of(solver, spec, target, config):
        return 500 * dict(config)["tile"]

    def plan(solver, spec, target, config):
        executable = planned(solver, spec, target, config)
        executable.workspace = workspace_of(solver, spec, target, config)
        return executable

    planned = gemm.plan
    monkeypatch.setattr(gemm, "configs", lambda *args: [(("tile", 4),), small, smallest])
    monkeypatch.setattr(gemm, "workspace_of", workspace_of, raising=False)
    monkeypatch.setattr(gemm, "plan", plan)
    for limit, sizes, needed in ((4000, small, 4000), (3999, smallest, 1000)):
        first = dispatch.candidates(SPEC, request(algorithm="gemm", workspace_limit=limit))[0]
        assert (first.config, first.workspace, first.refusal) == (sizes, needed, None)
        plan_of = convjit.plan(
            X, W, padding=1, backend="null", algorithm="gemm", workspace_limit=limit
        )
        assert (plan_of.config, plan_of.workspace) == (sizes, needed)
    assert "1048576 bytes" in refusals(workspace_limit=999)["gemm"]
    without = convjit.plan(X, W, padding=1, backend="null", algorithm="gemm")
    assert without.config == (("tile", 4),)


def test_a_family_and_an_id_force(solvers):
    assert ranking(algorithm="gemm") == ["gemm"]
    assert ranking(algorithm="null.direct") == ["direct"]
    plan = convjit.plan(X, W, padding=1, backend="null", algorithm="gemm")
    assert plan.solver == "null.gemm"
    assert "forced by backend='null' and algorithm='gemm'" in plan.reason


def test_a_forced_choice_that_is_refused_raises_with_every_reason(solvers):
    with pytest.raises(convjit.UnsupportedError, match=r"null\.winograd: ") as caught:
        convjit.plan(X, W, padding=1, backend="null", algorithm="winograd", precision="exact")
    assert [name for name, _ in caught.value.refusals] == ["null.winograd"]
    with pytest.raises(convjit.UnsupportedError, match="forward only, and nothing to lower it to"):
        convjit.plan(X, W, direction="weight_grad", backend="null")


def test_an_unknown_algorithm_lists_the_choices(solvers):
    message = "algorithm='strassen' is not known to the backends considered; give a family (direct"
    with pytest.raises(convjit.ConvSpecError, match=re.escape(message)):
        convjit.plan(X, W, backend="null", algorithm="strassen")


def test_a_family_that_a_backend_lacks_is_unsupported(solvers):
    with pytest.raises(convjit.UnsupportedError, match="no solver of that family"):
        convjit.plan(X, W, backend="null", algorithm="fft")


def test_a_refusal_for_memory_says_what_would_be_enough() -> None:
    spec = "conv_f32_NCHW_n1c8k8g1_i9x9_w3x3"
    needs = {
        c.label: c.workspace
        for c in convjit.explain((1, 8, 9, 9), (8, 8, 3, 3), backend="scipy").candidates
    }
    least = min(needs, key=lambda label: needs[label])
    with pytest.raises(convjit.UnsupportedError) as caught:
        convjit.plan((1, 8, 9, 9), (8, 8, 3, 3), bias=False, backend="scipy", workspace_limit=1)
    told = str(caught.value)
    assert f"workspace_limit=1) computes {spec}:" in told
    assert f"\nworkspace_limit={needs[least]} would admit {least}. Allow more" in told


def test_the_first_configuration_is_planned(solvers):
    plan = convjit.plan(X, W, backend="null", algorithm="direct")
    assert plan.executable.config == (("tile", 4),)


def test_disable_names_solvers(solvers):
    with convjit.use(disable="null.winograd"):
        assert ranking() == ["gemm", "loose", "direct"]
        assert "disabled" in refusals()["winograd"]


def test_the_reason_names_the_runner_up(solvers):
    plan = convjit.plan(X, W, padding=1, backend="null")
    assert re.search(r"cost model: .* ms, next null\.gemm .* ms", plan.reason)


def test_equal_predictions_fall_back_to_the_declared_order(solvers):
    solvers["gemm"].flops_per_second = solvers["winograd"].flops_per_second
    plan = convjit.plan(X, W, padding=1, backend="null")
    assert plan.solver == "null.gemm"
    assert "declared before null.winograd" in plan.reason


# -------------------------------------------------------------------- the plan cache


def arrays():
    return np.zeros(X, np.float32), np.zeros(W, np.float32)


def test_a_repeated_call_asks_nobody(solvers):
    x, w = arrays()
    convjit.conv(x, w, backend="null")
    asked = solvers["direct"].asked
    for padding in (0, (0, 0), [0, 0], [(0, 0), (0, 0)]):
        convjit.conv(x, w, backend="null", padding=padding)
    before = solvers["direct"].asked
    for padding in (0, (0, 0), [0, 0], [(0, 0), (0, 0)]):
        convjit.conv(x, w, backend="null", padding=padding)
    assert asked < before == solvers["direct"].asked


def test_what_decides_is_part_of_the_key(solvers):
    x, w = arrays()
    variations = [
        {},
        {"padding": 1},
        {"stride": 2},
        {"precision": "exact"},
        {"algorithm": "direct"},
        {"activation": "relu"},
        {"bias": np.zeros(16, np.float32)},
        {"deterministic": True},
    ]
    calls._plans.clear()
    for options in variations:
        convjit.conv(x, w, backend="null", **options)
    convjit.conv(x[..., ::-1], w, backend="null")
    with convjit.use(precision="exact"):
        convjit.conv(x, w, backend="null")
    assert len(calls._plans) == len(variations) + 2


def test_the_cache_is_bounded(solvers, monkeypatch):
    monkeypatch.setattr(calls, "PLANS_KEPT", 3)
    x, w = arrays()
    for padding in range(6):
        convjit.conv(x, w, backend="null", padding=padding)
    assert len(calls._plans) == 3


def test_registering_a_backend_empties_the_cache(solvers):
    x, w = arrays()
    convjit.conv(x, w, backend="null")
    planned = solvers["loose"].planned
    convjit.refresh()
    convjit.conv(x, w, backend="null")
    assert solvers["loose"].planned == planned + 1


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("stride", 1, 1.0),
        ("stride", 1, True),
        ("stride", (1, 1), (1, 1.0)),
        ("stride", (1, 1), [1, True]),
        ("padding", 0, False),
        ("padding", ((0, 0), (1, 1)), ((0, 0), (1, 1.0))),
        ("dilation", 1, 1.0),
        ("groups", 1, 1.0),
        ("flip", False, 0.0),
        ("workspace_limit", 1 << 30, float(1 << 30)),
        ("deterministic", True, 1.0),
    ],
)
def test_an_argument_of_another_type_is_checked_although_an_equal_one_was(solvers, name, good, bad):
    x, w = arrays()
    given = {"backend": "null", "algorithm": "direct"}
    for _ in range(2):
        convjit.conv(x, w, **given, **{name: good})
        with pytest.raises(TypeError, match=rf"{name}\b.*="):
            convjit.conv(x, w, **given, **{name: bad})


def test_equal_arguments_of_good_types_are_kept_side_by_side(solvers):
    x, w = arrays()
    for stride in (1, np.int64(1)):
        convjit.conv(x, w, backend="null", stride=stride)
    asked = solvers["direct"].asked
    for stride in (1, np.int64(1), 1, np.int64(1)):
        convjit.conv(x, w, backend="null", stride=stride)
    assert solvers["direct"].asked == asked


@pytest.mark.parametrize("name", ["precision", "nonfinite"])
def test_an_empty_name_is_not_none(solvers, name):
    x, w = arrays()
    with pytest.raises(convjit.ConvSpecError, match=f"{name}='' is not known"):
        convjit.conv(x, w, backend="null", **{name: ""})


def test_deterministic_is_a_bool(solvers):
    x, w = arrays()
    message = "deterministic='yes' is not a bool; give True or False."
    with pytest.raises(TypeError, match=re.escape(message)):
        convjit.conv(x, w, backend="null", deterministic="yes")
    with pytest.raises(TypeError, match=re.escape(message)):
        convjit.plan(X, W, backend="null", deterministic="yes")


def test_a_plan_selected_before_a_change_of_backends_is_not_kept(solvers, monkeypatch):
    x, w = arrays()
    convjit.conv(x, w, backend="null")
    select = dispatch.select

    def slow_select(*arguments):
        plan = select(*arguments)
        convjit.refresh()  # as another thread may at any time
        return plan

    monkeypatch.setattr(dispatch, "select", slow_select)
    before = dict(calls._plans)
    convjit.conv(x, w, backend="null", padding=1)
    assert calls._plans == before
    monkeypatch.setattr(dispatch, "select", select)
    convjit.conv(x, w, backend="null", padding=1)
    assert len(calls._plans) == 1


def test_weights_of_another_kind_than_the_plan_are_refused(solvers):
    plan = convjit.plan(X, W, backend="null", algorithm="direct")
    x, w = arrays()
    plan(x, convjit.weights(w.astype(np.float64)))
    with pytest.raises(TypeError, match="w has dtype complex128, this plan takes float32"):
        plan(x, convjit.weights(w.astype(complex)))


def test_weights_are_packed_once_for_each_plan(solvers):
    x, w = arrays()
    packed = convjit.weights(w)
    for _ in range(3):
        convjit.conv(x, packed, backend="null", padding=1)
    (plan,) = [kept.plan for key, kept in calls._plans.items() if key[6] is convjit.Weights]
    assert plan.executable.packed == 1
    assert plan.solver == "null.winograd"  # the packing is not counted


def test_weights_do_not_change_with_their_source():
    source = np.ones((1, 1, 3, 3), np.float32)
    packed = convjit.weights(source)
    source[...] = 7
    assert (packed.array == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        packed.array[...] = 2


def test_a_packed_operand_belongs_to_its_plan(solvers):
    x, w = arrays()
    one = convjit.plan(X, W, backend="null", algorithm="direct")
    other = convjit.plan(X, W, backend="null", algorithm="gemm")
    with pytest.raises(convjit.ConvSpecError, match="was packed by another plan"):
        other(x, one.pack(w))


# -------------------------------------------------------------------- settings in contexts


def test_use_nests_and_restores():
    assert config.current().precision is None
    with convjit.use(precision="exact", num_threads=1):
        with convjit.use(precision="fast"):
            assert (config.current().precision, config.num_threads()) == ("fast", 1)
        assert config.current().precision == "exact"
    assert config.current().precision is None


def test_use_is_a_decorator_for_functions_and_coroutines():
    @convjit.use(num_threads=3)
    def plain():
        return config.num_threads()

    @convjit.use(num_threads=4)
    async def awaited():
        await asyncio.sleep(0)
        return config.num_threads()

    assert plain() == 3
    assert asyncio.run(awaited()) == 4


def test_one_use_object_in_many_threads():
    shared = convjit.use(num_threads=5)
    barrier = threading.Barrier(4)
    seen = []

    def enter():
        with shared:
            barrier.wait()
            seen.append(config.num_threads())
            barrier.wait()
        seen.append(config.current().num_threads)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen, key=str) == [5, 5, 5, 5, None, None, None, None]


def test_tasks_do_not_see_each_other():
    async def task(number, first, second):
        with convjit.use(num_threads=number):
            first.set()
            await second.wait()
            return config.num_threads()

    async def both():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task(2, one, two), task(3, two, one))

    assert asyncio.run(both()) == [2, 3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_threads": 0}, convjit.ConfigError, "num_threads=0 must be from 1"),
        ({"num_threads": 1.5}, TypeError, "num_threads=1.5 is not a whole number"),
        ({"precision": "double"}, convjit.ConvSpecError, "precision='double' is not known"),
        ({"workspace_limit": -1}, convjit.ConvSpecError, "workspace_limit=-1 is negative"),
        ({"disable": (1,)}, TypeError, "disable=(1,) is neither a name nor a tuple of names"),
        ({"priority": 5}, TypeError, "priority=5 is neither a name nor a tuple of names"),
        (
            {"backend": 5},
            TypeError,
            "backend=5 is neither a name nor a tuple of names; give one such as "
            'backend="numba", or backend=("numba", "scipy").',
        ),
        ({"backend": ("numba", 5)}, TypeError, "backend=('numba', 5) is neither a name"),
        ({"algorithm": 5}, TypeError, "algorithm=5 is not a name; give a family"),
    ],
)
def test_use_checks_its_arguments(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        convjit.use(**options)


# -------------------------------------------------------------------- explain


def test_explain_works_from_shapes_alone(solvers):
    text = str(convjit.explain(X, W, padding=1, backend="null", precision="exact"))
    for solver in solvers.values():
        assert solver.id in text
    assert "exact" in text


def test_explain_does_not_raise_when_everything_refuses(solvers):
    text = str(convjit.explain(X, W, direction="weight_grad", backend="null"))
    assert "forward only" in text


def test_a_plan_prints_itself(solvers):
    text = str(convjit.plan(X, W, padding=1, backend="null", algorithm="gemm"))
    assert "conv_f32_NCHW_n1c16k16g1_i32x32_w3x3_p1" in text
    assert "workspace     1048576 bytes" in text
