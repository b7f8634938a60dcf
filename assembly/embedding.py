"""How a recipe embeds clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from accelerate import Accelerator
from torch import nn

from assembly.training_clips import Clips
from modeling import AsdFeatureExtractor
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.training_arguments import TrainArguments


@dataclass(frozen=True)
class Embedder:
    """Embeds clips as the arguments want it, whichever model it is given.

    Attributes:
        feature_extractor: Batches waveforms for the model.
        accelerator: Gives the device and the processes.
        strengths: The guard's decision per machine, in [0, 1]; a machine left out has 1.
        batch_size: Clips per forward pass.
        num_workers: Processes that decode ahead.
    """

    feature_extractor: AsdFeatureExtractor
    accelerator: Accelerator
    strengths: Mapping[str, float]
    batch_size: int
    num_workers: int

    @classmethod
    def of(
        cls,
        args: TrainArguments,
        feature_extractor: AsdFeatureExtractor,
        accelerator: Accelerator,
        strengths: Mapping[str, float],
    ) -> Self:
        """Return the one that the arguments describe."""
        sizes = args.extraction_batch_size, args.dataloader_num_workers
        return cls(feature_extractor, accelerator, strengths, *sizes)

    def __call__(self, model: nn.Module, clips: Clips, description: str) -> EmbeddingTable:
        """Return the embeddings of clips; `description` is what the progress bar says."""
        return extract_embeddings(
            model,
            clips,
            self.feature_extractor,
            batch_size=self.batch_size,
            accelerator=self.accelerator,
            front_end_strength=self.strengths,
            num_workers=self.num_workers,
            description=description,
        )
