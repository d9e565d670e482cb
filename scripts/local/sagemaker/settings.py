"""The server's settings, and the few helpers that every part needs."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


@dataclasses.dataclass(frozen=True)
class Settings:
    """Command-line settings. Durations are seconds; `images` are all that exist, `missing_types` the region's gaps;
    `spot_price` is a share of the price on demand."""

    state: Path
    region: str
    account: str
    python: str
    aws_endpoint: str | None = None
    events_url: str | None = None
    quotas: dict[str, int] = dataclasses.field(default_factory=dict)
    parallel: int = 1
    health_check_seconds: float = 480.0
    invoke_seconds: float = 60.0
    cold_start_seconds: float = 0.0
    idle_seconds: float = 300.0
    images: frozenset[str] = frozenset()
    missing_types: frozenset[str] = frozenset()
    start_gate: Path | None = None
    stop_grace_seconds: float = 120.0
    spot_price: float = 0.3
    pass_env: tuple[str, ...] = ()

    def arn(self, resource: str, name: str) -> str:
        """ARN of a resource; SageMaker writes the name in lower case."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{resource}/{name.lower()}"

    def client(self, service: str) -> Any:
        """boto3 client for S3, CloudWatch or CloudWatch Logs. Path-style: local endpoints have no bucket host names."""
        return boto3.client(
            service,
            region_name=self.region,
            endpoint_url=self.aws_endpoint,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=20,
            ),
        )


def now() -> float:
    """Epoch seconds with millisecond precision, as the API shows times."""
    return round(time.time(), 3)


def later_than(previous: float) -> float:
    """Now, but strictly after `previous`: a changed LastModifiedTime must differ."""
    return max(now(), round(previous + 0.001, 3))
