"""What can go wrong in an engine replica.

DeploymentError
├── EngineStartError      an engine could not be started; carries the model and the reason
├── EngineUnavailableError  the model's engine is not able to serve now and may be later
│   └── ReplicaLeavingError  because this replica is being shut down; another one may serve
├── PoolUnavailableError  the process pool can't fork an engine for this process
├── EngineDiedError       the engine ended while it worked on the request
├── RequestRejectedError  the engine refuses this request as it is (the caller's fault)
├── EngineBusyError       the engine can't be put to sleep now: it has requests in hand
├── SleepUnsupportedError  the engine can't be put to sleep at all
├── WakeError             the engine did not wake as it fell asleep, and has to be started again
├── ResumeUnsupportedError  the engine can't go on exactly where another one ended
├── UnknownModelError     the replica does not host this model
├── EngineArgumentError   an engine argument in the configuration is unknown or invalid
├── CareEndedError        what a deployment does without end has ended: it is unhealthy
└── FeedError             the token feed to the gateway could not be opened or broke

All are picklable: every field is positional and goes to ``Exception.__init__``. HTTP statuses are decided in ``app``.
"""


class DeploymentError(Exception):
    """Root of this package's errors."""


class EngineStartError(DeploymentError):
    """The engine of ``model_id`` could not be started."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(model_id, reason)
        self.model_id = model_id
        self.reason = reason

    def __str__(self) -> str:
        return f"The engine of model '{self.model_id}' could not be started: {self.reason}"


class EngineUnavailableError(DeploymentError):
    """The engine of ``model_id`` cannot serve at the moment."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(model_id, reason)
        self.model_id = model_id
        self.reason = reason

    def __str__(self) -> str:
        return f"Model '{self.model_id}' cannot serve at the moment: {self.reason}"


class ReplicaLeavingError(EngineUnavailableError):
    """The replica ends its engines because it is shut down; the request is somebody else's now."""


class PoolUnavailableError(DeploymentError):
    """The process pool at ``address`` does not fork an engine for this process."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"The process pool at {self.address} does not fork this engine: {self.reason}"


class EngineDiedError(DeploymentError):
    """The engine of ``model_id`` ended while it had a request; it may be because of it only if it ``had_begun`` it."""

    def __init__(self, model_id: str, had_begun: bool = True) -> None:  # noqa: FBT001, FBT002 - errors are pickled
        super().__init__(model_id, had_begun)
        self.model_id = model_id
        self.had_begun = had_begun

    def __str__(self) -> str:
        when = "while it worked on" if self.had_begun else "before it worked on"
        return f"The engine of model '{self.model_id}' ended {when} this request; please send it again."


class RequestRejectedError(DeploymentError):
    """The engine refuses the request as it stands; ``parameter`` names the field when it is known."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message, parameter)
        self.message = message
        self.parameter = parameter

    def __str__(self) -> str:
        return self.message


class EngineBusyError(DeploymentError):
    """The engine of ``model_id`` has requests in hand and stays awake."""

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id)
        self.model_id = model_id

    def __str__(self) -> str:
        return f"The engine of model '{self.model_id}' has requests in hand and can't be put to sleep."


class SleepUnsupportedError(DeploymentError):
    """The engine of ``model_id`` can't sleep, for a reason that will not change; it stays awake."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(model_id, reason)
        self.model_id = model_id
        self.reason = reason

    def __str__(self) -> str:
        return f"The engine of model '{self.model_id}' can't sleep: {self.reason}"


class WakeError(DeploymentError):
    """The engine of ``model_id`` could not be woken, or does not answer as before; it has to be started again."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(model_id, reason)
        self.model_id = model_id
        self.reason = reason

    def __str__(self) -> str:
        return f"The engine of model '{self.model_id}' could not be woken: {self.reason}"


class ResumeUnsupportedError(DeploymentError):
    """The engine of ``model_id`` can't continue a request behind tokens of an earlier attempt without differences."""

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(model_id, reason)
        self.model_id = model_id
        self.reason = reason

    def __str__(self) -> str:
        return f"The engine of model '{self.model_id}' ended, and another can't continue the text: {self.reason}"


class UnknownModelError(DeploymentError):
    """The replica does not host ``model_id``."""

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id)
        self.model_id = model_id

    def __str__(self) -> str:
        return f"This replica does not host model '{self.model_id}'."


class EngineArgumentError(DeploymentError):
    """Engine argument ``key`` of ``model_id`` is unknown or has an invalid value."""

    def __init__(self, model_id: str, key: str | None, reason: str) -> None:
        super().__init__(model_id, key, reason)
        self.model_id = model_id
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        where = f"engine argument '{self.key}'" if self.key else "engine arguments"
        return f"{where} of model '{self.model_id}': {self.reason}"


class FeedError(DeploymentError):
    """The token feed to the gateway at ``address`` could not be opened or broke."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"The token feed to the gateway at {self.address} broke: {self.reason}"


class CareEndedError(DeploymentError):
    """Nobody is ``doing`` any more what a deployment does as long as it lives."""

    def __init__(self, doing: str, reason: str) -> None:
        super().__init__(doing, reason)
        self.doing = doing
        self.reason = reason

    def __str__(self) -> str:
        return f"Nobody is {self.doing} any more: {self.reason}"
