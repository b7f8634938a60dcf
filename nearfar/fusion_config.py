"""All that transformers can know of a fusion: its members, and that no pipeline joins them."""

import os
from typing import Any

from transformers import PreTrainedConfig


class FusionConfig(PreTrainedConfig):
    """The configuration of a fusion's folder, where no single model could be loaded.

    It travels with the fusion, so that `pipeline` and the auto classes say what to do instead.

    Args:
        members: Folders of the members, below the fusion's own.
    """

    model_type = "nearfar_fusion"

    members: list[str] | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]  # it has no instance to return
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **kwargs: Any,  # noqa: ANN401  transformers'
    ) -> None:
        """Raise ValueError: say how to score with a fusion, or with a member of it."""
        found, _ = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        members = found.get("members") or []
        raise ValueError(
            f"{pretrained_model_name_or_path} is a fusion of {len(members)} systems, which no "
            "pipeline loads as one. Score recordings by it with nearfar: python score.py --model "
            f"FOLDER; or load a member of it, FOLDER/{' or FOLDER/'.join(members)}. FOLDER is what "
            "huggingface_hub.snapshot_download returns, or the run folder itself."
        )


FusionConfig.register_for_auto_class()
