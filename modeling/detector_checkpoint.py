"""What a detector's checkpoint folder holds beside the weights: its code and its reference bank."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from .anomaly_map import AnomalyMap
from .configuration_asd import FORMAT_VERSION
from .detector_base import Detector
from .hub_files import keep_companions, keep_head, loaded_commit
from .reference_bank import ReferenceBank

if TYPE_CHECKING:
    # save_pretrained looks for lines of this form: it is why a checkpoint carries them.
    from .handler import EndpointHandler  # noqa: F401
    from .pipeline_asd import AnomalousSoundDetectionPipeline  # noqa: F401

CUSTOM_PIPELINES = {
    "anomalous-sound-detection": {
        "impl": "pipeline_asd.AnomalousSoundDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "audio",
    }
}


class DetectorPreTrainedModel(PreTrainedModel):
    """A model whose embeddings are scored by the reference bank that lies beside its weights."""

    main_input_name = "near_values"
    input_modalities = ["audio"]  # noqa: RUF012 an instance attribute above

    # What config.json says about the code beside it, whichever class was saved.
    AUTO_MAP: ClassVar[dict[str, str]]
    # Of this code; the pipeline compares it with its own, which may come from a checkpoint.
    code_format_version: ClassVar[int] = FORMAT_VERSION

    # Whether forward takes `machines`, the full name of each clip's machine.
    reads_machines: ClassVar[bool] = False

    # Name or folder, revision, token and local_files_only of from_pretrained; None for a new model.
    _loaded_from: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what we do not touch stays in **kwargs
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,  # noqa: ANN401  handed on
        **kwargs: Any,  # noqa: ANN401  handed on
    ) -> Self:
        """Load a model as transformers does, and remember from where, for its reference bank.

        Raises:
            ValueError: The weights are damaged.
        """
        origin: dict[str, Any] = {
            "revision": kwargs.get("revision"),
            "token": kwargs.get("token"),
            "local_files_only": bool(kwargs.get("local_files_only")),
        }
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} are damaged: {error}. Fetch or "
                "write them again."
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        folder = Path(pretrained_model_name_or_path)
        name_or_dir = str(folder.resolve() if folder.is_dir() else pretrained_model_name_or_path)
        if not folder.is_dir():  # the branch may move before the bank is read
            origin["revision"] = loaded_commit(
                name_or_dir, origin["revision"], kwargs.get("cache_dir")
            )
        model._loaded_from = {"name_or_dir": name_or_dir, **origin}
        return loaded

    def anomaly_map(
        self,
        inputs: Mapping[str, Tensor | None],  # noqa: ARG002  a subclass's, like the others
        detector: Detector,  # noqa: ARG002
        *,
        machine: str,  # noqa: ARG002
        profile: Tensor | None = None,  # noqa: ARG002
    ) -> AnomalyMap:
        """Return why one clip scores as it does.

        Args:
            inputs: What `forward` takes, of one clip without padding.
            detector: Of the clip's machine, fitted.
            machine: Its full name.
            profile: Of its normal clips, see `BandMeans`; None without one.

        Raises:
            ValueError: This kind of model has no map, or as `forward`.
        """
        raise ValueError(
            f"A {type(self).__name__} draws no anomaly map. Leave out map=True, or take an "
            "AsdModel or an AutoencoderModel."
        )

    def load_reference_bank(self) -> ReferenceBank | None:
        """Return the bank beside the weights this model was loaded from; None if there is none.

        It is read at the same revision, with the same token. A new model has none.
        """
        if self._loaded_from is None or not self._is_origin_there():
            return None
        try:
            return ReferenceBank.from_pretrained(**self._loaded_from)
        except FileNotFoundError:
            return None

    def keep_what_was_beside(self, folder: Path) -> None:
        """Complete a folder that this model was saved in, by what lay beside it when it was loaded.

        That is the card, the recipe, the figures, LoRA's adapter, and a head's weights.
        """
        origin = self._loaded_from
        if origin is None or not self._is_origin_there():
            return
        keep_companions(folder, **origin)
        if not hasattr(self, self.base_model_prefix):
            keep_head(folder, f"{self.base_model_prefix}.", **origin)

    def _is_origin_there(self) -> bool:
        """Return whether what this model was loaded from is a folder that is there, or a Hub name.

        A folder that was deleted since is no name of the Hub.
        """
        name_or_dir = Path(self._loaded_from["name_or_dir"] if self._loaded_from else "")
        return name_or_dir.is_dir() or not name_or_dir.is_absolute()

    def save_pretrained(  # type: ignore[override]  # what we do not touch stays in **kwargs
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,  # noqa: ANN401  handed on
    ) -> None:
        """Save weights, config, code and, if this model was loaded with one, its reference bank.

        A bank that is already in the folder stays as it is.

        Args:
            save_directory: Folder, made if needed.
            is_main_process: Whether this process writes what all processes have in common.
            push_to_hub: Upload the folder's content afterwards, to `repo_id` if given.
            **kwargs: As transformers' `save_pretrained` and `push_to_hub` take them.
        """
        hub_options = {
            key: kwargs.pop(key)
            for key in ("repo_id", "commit_message", "create_pr", "private")
            if key in kwargs
        }
        self.config.auto_map = dict(self.AUTO_MAP)
        self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        folder = Path(save_directory)
        super().save_pretrained(folder, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        if not (folder / "reference_bank.json").exists():
            bank = self.load_reference_bank()
            if bank is not None:
                bank.save_pretrained(folder)
        if push_to_hub:  # after the bank is written, so that it is uploaded, too
            repo_id = hub_options.pop("repo_id", folder.name)
            self.push_to_hub(repo_id, token=kwargs.get("token"), **hub_options)


__all__ = ["DetectorPreTrainedModel"]
