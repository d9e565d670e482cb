"""Errors as the SageMaker API returns them."""


class ApiError(Exception):
    """An error answer: its AWS code, text, HTTP status and further members of the body."""

    def __init__(self, code: str, message: str, status: int = 400, **members: object) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.members = members


def validation(message: str) -> ApiError:
    """ValidationException, the control plane's answer to nearly everything it refuses."""
    return ApiError("ValidationException", message)


def null_member(path: str) -> ApiError:
    """A required member is missing; `path` as AWS writes it, e.g. ``resourceConfig.instanceType``."""
    return constraint(None, path, "Member must not be null")


def constraint(value: object, path: str, text: str) -> ApiError:
    """One broken constraint, in the words of AWS, which quotes the value but not null."""
    shown = "null" if value is None else f"'{value}'"
    return validation(f"1 validation error detected: Value {shown} at '{path}' failed to satisfy constraint: {text}")


def unsupported(what: str) -> ApiError:
    """The request is valid on AWS, and this server would have to ignore a part of it."""
    return validation(f"Local SageMaker does not support {what}.")


def not_found(kind: str, arn: str) -> ApiError:
    """`kind` is "endpoint", "endpoint configuration" or "model"."""
    return validation(f'Could not find {kind} "{arn}".')


def already_exists(kind: str, arn: str) -> ApiError:
    return validation(f'Cannot create already existing {kind} "{arn}".')
