from app.metrics import merge

HEAD = """# HELP ray_serve_requests requests
# TYPE ray_serve_requests counter
ray_serve_requests{node="a"} 1.0
# HELP ray_node_cpu processor
# TYPE ray_node_cpu gauge
ray_node_cpu{node="a"} 0.5
# HELP ray_vllm_ttft seconds
# TYPE ray_vllm_ttft histogram
ray_vllm_ttft_bucket{le="1.0",node="a"} 2.0
ray_vllm_ttft_count{node="a"} 2.0
"""


def test_one_node_keeps_ours_and_drops_the_rest() -> None:
    merged = merge([HEAD])
    assert "ray_node_cpu" not in merged
    assert [line for line in HEAD.splitlines() if "ray_node" not in line] == merged.splitlines()


def test_two_nodes_share_a_familys_header_and_keep_its_samples_together() -> None:
    merged = merge([HEAD, HEAD.replace('"a"', '"b"')]).splitlines()
    assert merged.count("# TYPE ray_vllm_ttft histogram") == 1
    start = merged.index("# TYPE ray_vllm_ttft histogram")
    assert [line.split("{")[0] for line in merged[start + 1 :]] == [
        "ray_vllm_ttft_bucket",
        "ray_vllm_ttft_count",
        "ray_vllm_ttft_bucket",
        "ray_vllm_ttft_count",
    ]


def test_nothing_is_nothing() -> None:
    assert merge([]) == ""
