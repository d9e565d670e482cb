"""Account quotas, by the names that AWS gives them in its error texts."""

from .errors import ApiError

# Sizes of a new AWS account, where known; instance quotas are generous for CPU types and 0 for accelerators.
SERVERLESS_MEMORY = "Memory size in MB per serverless endpoint"
SERVERLESS_ENDPOINTS = "Number of serverless endpoints"
# Of young accounts (repost.aws QUY0gXNLrdTH6eqqA4hv5FeA); the guide's 500 or 1000 is that of older ones.
SERVERLESS_CONCURRENCY = "Maximum total concurrency that can be allocated across all serverless endpoints"
_DEFAULTS = {SERVERLESS_MEMORY: 3072, SERVERLESS_ENDPOINTS: 50, SERVERLESS_CONCURRENCY: 10}
_CPU_INSTANCES = 20
_ACCELERATED = ("ml.p", "ml.g", "ml.trn", "ml.inf")


def parse(text: str) -> tuple[str, int]:
    """``"ml.m5.xlarge for training job usage=2"`` -> (name, limit). Raises ValueError."""
    name, equals, limit = text.rpartition("=")
    if not equals or not name.strip() or not limit.strip().isdigit():
        raise ValueError(f"quota {text!r} is not of the form 'ml.m5.xlarge for training job usage=2'")
    return name.strip(), int(limit)


def check(quotas: dict[str, int], name: str, used: int, wanted: int, unit: str = "Instances") -> None:
    """Refuse a request for `wanted` more when `used` are in use; raises ResourceLimitExceeded."""
    limit = quotas.get(name, _default(name))
    if used + wanted > limit:
        raise ApiError(
            "ResourceLimitExceeded",
            f"The account-level service limit '{name}' is {limit} {unit}, with current utilization of {used} "
            f"{unit} and a request delta of {wanted} {unit}. Please use AWS Service Quotas to request an "
            "increase for this quota. If AWS Service Quotas is not available, contact AWS support to request "
            "an increase for this quota.",
        )


def check_region(missing: frozenset[str], resource: str, kind: str) -> None:
    """Refuse an instance type that the region does not have; raises ResourceLimitExceeded, as AWS does.

    `resource` is "training-job" (text: aws/amazon-sagemaker-examples issue 1001) or "endpoint" (by analogy).
    """
    if kind in missing:
        text = f"The requested resource {resource}/{kind} is not available in this region"
        raise ApiError("ResourceLimitExceeded", text)


def _default(name: str) -> int:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    return 0 if name.startswith(_ACCELERATED) else _CPU_INSTANCES
