"""What can be set of forecasting and scaling; the section ``autoscaling`` of the configuration."""

from pydantic import BaseModel, ConfigDict, Field

QUANTILES = (0.1, 0.5, 0.9)
"""What every forecaster gives; the last but configured one is what scaling goes by."""
PATIENCE_S = 1.0


class AutoscalingConfig(BaseModel):
    """How demand is forecast and how far ahead of it capacity is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket_s: int = Field(10, ge=1, description="seconds of a bucket of recent arrivals")
    season_bucket_s: int = Field(300, ge=60, description="seconds of a bucket of seasonal forecasts")
    horizon_s: float = Field(600.0, gt=0, description="how far ahead is forecast")
    quantile: float = Field(0.9, gt=0.5, lt=1, description="of demand, that capacity is kept for")
    refit_s: float = Field(900.0, gt=0, description="seconds between fits of the seasonal model")
    waiting_worth: float = Field(
        100.0, gt=0, description="seconds a device may idle to save one request one second of waiting"
    )
    patience_s: float = Field(
        PATIENCE_S, ge=0, description="waiting that users hardly mind: the first so many seconds of it weigh a tenth"
    )
    target_ongoing_requests: float = Field(8.0, gt=0, description="sequences that a replica is to work on at once")
    downscale_s: float = Field(60.0, ge=0, description="how long fewer replicas have to do before one is given back")
    engines_ahead: bool = Field(
        default=True,
        description="start engines ahead of the replicas that are to have them, on nodes where they have run",
    )
    neural: bool = Field(default=True, description="fit NeuralProphet; it is used only where it forecasts best")
