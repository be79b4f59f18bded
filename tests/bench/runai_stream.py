"""Run:ai's streamer as a process: for every line on its input it streams the file once, then answers with a line.

It gives tensors in the memory of its process and keeps no file, so it has less to do than those who stage. A process
of its own, since it reads its settings once; starting it is not what is measured.

Usage: python runai_stream.py ENDPOINT_URL s3://bucket/file.safetensors
"""

import os
import sys


def main() -> None:
    endpoint_url, file_url = sys.argv[1:]
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint_url,
        "RUNAI_STREAMER_S3_ENDPOINT": endpoint_url,
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    from runai_model_streamer import SafetensorsStreamer  # noqa: PLC0415 - it reads the environment

    print("ready", flush=True)
    for _ in sys.stdin:
        size_bytes = 0
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(file_url)
            for _, tensor in streamer.get_tensors():
                size_bytes += tensor.nbytes
        print(size_bytes, flush=True)


if __name__ == "__main__":
    main()
