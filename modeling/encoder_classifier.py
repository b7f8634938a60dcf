"""Classes from an encoder and the head that its authors' fine-tuning added."""

from typing import Unpack

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple


class EncoderForAudioClassification(PreTrainedModel):
    """What all encoders with a head do alike; each says by `classify` what its head does.

    The labels are those of AudioSet, several per clip: probabilities are `logits.sigmoid()`.
    """

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers' own
    def forward(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify clips.

        Args:
            input_values: As in the encoder's own `forward`.
            input_features: As there.
            attention_mask: As there.
            labels: (batch, num_labels) float in [0, 1]; the loss is the binary cross-entropy.
            **kwargs: As there.

        Returns:
            `logits` (batch, num_labels), `loss` if there are labels, and what else was asked for.
        """
        outputs = self.base_model(
            input_values, input_features=input_features, attention_mask=attention_mask, **kwargs
        )
        logits = self.classify(outputs.last_hidden_state, attention_mask)
        loss = None
        if labels is not None:
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def classify(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the logits, (batch, num_labels).

        Args:
            hidden_states: The encoder's `last_hidden_state`.
            attention_mask: As in `forward`.
        """
        raise NotImplementedError


__all__ = ["EncoderForAudioClassification"]
