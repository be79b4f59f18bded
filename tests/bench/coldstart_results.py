"""What `coldstart` measures, by name, and what becomes of it: medians, and comparisons with the targets."""

from report import Result, Target, median_result

AWAKE, STOCK_AWAKE = "awake", "stock vLLM, awake"
ASLEEP, POOL_DRAM, POOL_DISK = "asleep", "process pool, snapshot in dram", "process pool, snapshot on disk"
POOL_S3 = "process pool, snapshot in S3"
REPLICA, RAY_ZERO = "new replica, its node warm", "Ray Serve LLM, from zero replicas"
ZERO, ZERO_AFTER = "from zero replicas, engine forked ahead", "from zero replicas, engine after its replica"
NOTHING, STOCK = "nothing warm, snapshot in S3", "stock vLLM, checkpoint in S3"
RAW_READ = "raw read"

Samples = dict[str, list[float]]


def results(samples: Samples) -> list[Result]:
    """Medians of what was measured, and the comparisons with their targets."""
    targets = {ASLEEP: Target(0.30, "max"), POOL_DRAM: Target(3.0, "max")}
    found = [median_result(name, values, "s", targets.get(name)) for name, values in samples.items()]
    if AWAKE in samples:
        pairs = zip(samples[AWAKE], samples[STOCK_AWAKE], strict=True)
        found.append(
            median_result("awake, of stock vLLM's", [o / s for o, s in pairs], "", Target(1.1, "max"), STOCK_AWAKE)
        )
        pairs = zip(samples[POOL_DISK], samples[RAW_READ], strict=True)
        beyond = [o - r for o, r in pairs]
        found.append(median_result("process pool from disk, beyond the raw read", beyond, "s", Target(3.0, "max")))
    if RAY_ZERO in samples:
        zero_s = sorted(samples[RAY_ZERO])[len(samples[RAY_ZERO]) // 2]
        for name in sorted(samples.keys() & {REPLICA, ZERO}):
            ratios = [value / zero_s for value in samples[name]]
            found.append(median_result(f"{name}, of Ray Serve LLM's", ratios, "", None, RAY_ZERO))
    if STOCK in samples:
        stock_s = sorted(samples[STOCK])[len(samples[STOCK]) // 2]
        pairs = zip(samples[NOTHING], samples[STOCK], strict=True)
        found.append(
            median_result("nothing warm, of the stock path", [o / s for o, s in pairs], "", Target(0.5, "max"), STOCK)
        )
        for name, least in ((ASLEEP, 100.0), (POOL_DRAM, 8.0), (POOL_S3, None)):
            if name not in samples:
                continue
            ratios = [stock_s / value for value in samples[name]]
            found.append(
                median_result(f"stock path over {name}", ratios, "x", Target(least, "min") if least else None, STOCK)
            )
    return found
