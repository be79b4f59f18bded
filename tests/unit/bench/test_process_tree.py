from process_tree import CpuSnapshot, cpu_between

API, CORE, WORKER, NEW = (1, 0.0), (2, 0.0), (3, 0.0), (4, 9.0)
TITLES = {API: "python -m vllm", CORE: "VLLM::EngineCore", WORKER: "VLLM::Worker_TP0", NEW: "ray::IDLE"}


def snapshot(**cpu_s: float) -> CpuSnapshot:
    keys = {"api": API, "core": CORE, "worker": WORKER, "new": NEW}
    return CpuSnapshot({keys[k]: v for k, v in cpu_s.items()}, {keys[k]: TITLES[keys[k]] for k in cpu_s})


def test_processor_time_is_told_apart_by_role() -> None:
    use = cpu_between(snapshot(api=10, core=5, worker=100), snapshot(api=11, core=7, worker=130, new=0.5))
    assert (use.worker_s, use.scheduler_s, use.serving_s, use.worker_title) == (30, 2, 1.5, "VLLM::Worker")


def test_without_a_worker_process_the_engine_core_is_the_worker() -> None:
    use = cpu_between(snapshot(api=10, core=5), snapshot(api=11, core=25))
    assert (use.worker_s, use.scheduler_s, use.serving_s, use.worker_title) == (20, 0, 1, "VLLM::EngineCore")


def test_a_process_that_ended_meanwhile_does_not_count_backwards() -> None:
    use = cpu_between(snapshot(api=10, new=4, worker=1), snapshot(api=11, worker=2))
    assert (use.worker_s, use.outside_worker_s) == (1, 1)
