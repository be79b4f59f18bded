"""`make serve-s3`: the shipped configuration with its models in S3, on a server of this process's own."""

import os
import sys
from pathlib import Path

import yaml
from s3_server import serve_s3

from app.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / ".flashserve" / "serve_s3.yaml"


def run() -> None:
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    arguments = document["applications"][0]["args"]
    with serve_s3() as server:
        for model in arguments["models"]:
            directory = Path(model["source"])
            for path in (path for path in directory.rglob("*") if path.is_file()):
                server.objects[f"demo/{model['id']}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()
            model["source"] = f"s3://demo/{model['id']}"
            print(f"{model['source']} on {server.url}")
        arguments["storage"] = {"disk_dir": ".flashserve/snapshots-s3", "s3": {"endpoint_url": server.url}}
        CONFIG.write_text(yaml.safe_dump(document))
        # The server doesn't check them, but boto3 wants some.
        os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
        sys.argv = ["flashserve", "serve", str(CONFIG)]
        main()


if __name__ == "__main__":
    run()
