"""The container images that exist for this server: those that the project's Terraform may choose, and added ones.

Nothing is pulled: any image is played by the interpreter given with ``--python``. But a name that AWS's registries do
not have is refused here too, in AWS's words.
"""

import re
from pathlib import Path

from .errors import ApiError, validation

_IMAGES_TF = Path(__file__).resolve().parents[3] / "terraform" / "images.tf"
_NAME = re.compile(r'^ +[cg]pu += "([^":]+:[^":]+)"$', re.MULTILINE)
_ACCOUNT = re.compile(r'^ +([a-z0-9-]+) += "([0-9]{12})"$', re.MULTILINE)
_OTHER_ACCOUNT = re.compile(r'lookup\(local\.image_accounts, local\.region, "([0-9]{12})"\)')
_ECR = re.compile(
    r"(?P<account>[0-9]{12})\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/(?P<repository>[a-z0-9._/-]+)"
    r"(:(?P<tag>[A-Za-z0-9._-]+)|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_KNOWN_HERE = "(The local SageMaker knows the images of terraform/images.tf; --image IMAGE adds one.)"


def published(region: str) -> frozenset[str]:
    """AWS's own images in a region, training and serving, CPU and GPU: the tags and accounts of terraform/images.tf."""
    text = _IMAGES_TF.read_text(encoding="utf-8")
    names, [other] = _NAME.findall(text), _OTHER_ACCOUNT.findall(text)
    if not names:
        raise ValueError(f"no image tags found in {_IMAGES_TF}")
    account = dict(_ACCOUNT.findall(text)).get(region, other)
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return frozenset(f"{account}.dkr.ecr.{region}.{suffix}/{name}" for name in names)


def check_training(known: frozenset[str], image: str, role: str) -> None:
    """Refuse a training image that does not exist; raises ValidationException.

    The texts of CreateTrainingJob: aws/amazon-sagemaker-examples issues 2534 (repository) and 2450 (tag),
    aws/sagemaker-python-sdk issue 2063 (no ECR image).
    """
    if image in known:
        return
    parts = _ECR.fullmatch(image)
    if parts is None:
        raise validation(
            "Invalid training image. Please provide a valid Amazon Elastic Container Registry path of the Docker image "
            "to run."
        )
    rights = (
        f"and role {role} has proper pull permissions for SageMaker: ecr:BatchCheckLayerAvailability, "
        "ecr:BatchGetImage, ecr:GetDownloadUrlForLayer"
    )
    repository = image[: parts.end("repository")]
    if not any(other.startswith((f"{repository}:", f"{repository}@")) for other in known):
        raise _refused(
            f"Cannot find repository: {parts['repository']} in registry ID: {parts['account']} Please check if your "
            f"ECR repository exists {rights}"
        )
    tag, digest = parts["tag"] or ("null" if parts["digest"] else "latest"), parts["digest"] or "null"
    raise _refused(
        f"Cannot find the requested image: {image} with tag: {tag} and digest: {digest}. Please check if your ECR "
        f"image exists {rights}"
    )


def check_model(known: frozenset[str], image: str) -> None:
    """Refuse a serving image that does not exist; raises ValidationException.

    The text of CreateModel, for a repository as for a tag: aws-samples/easy-amazon-sagemaker-deployments, issue 4.
    """
    if image not in known:
        raise _refused(f"Requested image {image} not found.")


def _refused(text: str) -> ApiError:
    return validation(f"{text} {_KNOWN_HERE}")
