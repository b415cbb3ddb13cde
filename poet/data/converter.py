"""From the streams of a task to the arrays that a model's step takes."""

from __future__ import annotations

import functools
from typing import Any

from poet.data.backend import seqio, tensorflow
from poet.data.tasks import Example, mapped, task_features
from poet.spec import TextSpec
from poet.streams.text import FEATURES, LENGTH, STATES
from poet.tasks.layout import Layout


@functools.cache
def _converter_class() -> type:
    class LayoutConverter(seqio().FeatureConverter):
        """Unpacked `seqio.FeatureConverter` of one layout; see `convert`."""

        def __init__(self, layout: Layout, text: TextSpec):
            self._layout, self._text = layout, text
            self.TASK_FEATURES = self._specs(task_features(layout))
            names = {"tokens": ("int32", 1), "known": ("int32", 1)}
            if layout.text_span:
                names |= FEATURES
            self.MODEL_FEATURES = self._specs(names)
            # Lengths are held by the static shapes that `_convert` ensures.
            super().__init__(pack=False, apply_length_check=False)

        def _specs(self, features: dict[str, tuple[str, int]]) -> dict[str, Any]:
            tf = tensorflow()
            return {
                name: self.FeatureSpec(dtype=tf.as_dtype(dtype), rank=rank) for name, (dtype, rank) in features.items()
            }

        def _convert_features(self, ds: Any, task_feature_lengths: Any) -> Any:
            return mapped(functools.partial(_convert, self._layout, self._text))(ds)

        def get_model_feature_lengths(self, task_feature_lengths: Any) -> dict[str, int]:
            lengths = {"tokens": self._layout.length, "known": len(self._layout.loss_spans)}
            return {name: lengths.get(name, self._text.length) for name in self.MODEL_FEATURES}

    return LayoutConverter


def convert(dataset: Any, layout: Layout, text: TextSpec) -> Any:
    """Dataset of task features -> dataset of model features.

    tokens int32 [S], known int32 [P] for P loss spans, and where the layout has text, text_states
    float16 [L, E] (zeros beyond the text) and text_length int32 [].
    """
    lengths = dict.fromkeys(task_features(layout), text.length) | layout.streams
    lengths["known"] = len(layout.loss_spans)
    return _converter_class()(layout, text)(dataset, task_feature_lengths=lengths)


def _convert(layout: Layout, text: TextSpec, example: Example) -> Example:
    tf = tensorflow()
    tokens = layout.assemble(
        {name: example[name] for name in layout.streams},
        concatenate=lambda pieces, axis: tf.concat(pieces, axis),
        where=tf.where,
    )
    result = {
        "tokens": tf.ensure_shape(tokens, [layout.length]),
        "known": tf.ensure_shape(example["known"], [len(layout.loss_spans)]),
    }
    if layout.text_span:
        length = tf.minimum(example[LENGTH], text.length)
        states = example[STATES][:length]
        padded = tf.pad(states, [[0, text.length - tf.shape(states)[0]], [0, 0]])
        result[STATES] = tf.ensure_shape(padded, [text.length, text.width])
        result[LENGTH] = tf.minimum(length, tf.shape(states)[0])
    return result
