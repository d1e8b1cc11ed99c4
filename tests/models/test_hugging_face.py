"""Models of Hugging Face, made from configurations: each decision is proved, no student that is offered is wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks.hf_coverage import audit
from tests.support.hugging_face import MODELS, Pretrained
from understudy.core.errors import TraceError
from understudy.graph.analysis import analyse
from understudy.surgery.build import build

# One that is read from both sides, one that is written (grouped queries, rotary positions).
QUICK = {"BertForSequenceClassification", "LlamaForCausalLM"}
# One of each kind; the others, which differ from these in little, at night: two minutes of processor time.
KINDS = {"BertModel", "DistilBertForSequenceClassification", "ViTForImageClassification", "DeiTForImageClassification"}
KINDS |= {"SwinForImageClassification", "ConvNextForImageClassification", "SegformerForSemanticSegmentation"}
KINDS |= {"GPT2LMHeadModel", "T5ForConditionalGeneration", "WhisperEncoder"}


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    if name in QUICK:
        return ()
    return (pytest.mark.slow,) if name in KINDS else (pytest.mark.slow, pytest.mark.nightly)


EACH = [pytest.param(model, id=model.name, marks=marks(model.name)) for model in MODELS]
# The shares of parameters in layers that can shrink which are lower, with the reason.
LOWER = {
    "BertModel": 0.8,  # the width of the trunk is that of the output
    "ViTModel": 0.8,
    "CLIPVisionModelWithProjection": 0.8,
    "CLIPTextModelWithProjection": 0.8,
    "T5EncoderModel": 0.6,
    "T5ForConditionalGeneration": 0.9,  # the encoder's output is one of the model's
    "WhisperEncoder": 0.95,
    "BartForConditionalGeneration": 0.85,  # embeddings that share a table, positions that are cut at written places
    "DebertaV2ForSequenceClassification": 0.75,  # heads lie in the batch, which is then of another size
    "Wav2Vec2ForSequenceClassification": 0.8,  # a convolution whose weight is computed keeps the trunk
}


@pytest.mark.parametrize("model", EACH)
def test_no_student_is_wrong(model: Pretrained) -> None:
    row = audit(model.create(), model.inputs(), draws=2)
    assert row["wrong"] == []
    assert row["share"] >= LOWER.get(model.name, 0.97)


def by_name(name: str) -> Pretrained:
    return next(model for model in MODELS if model.name == name)


def test_heads_and_layers_of_a_decoder_go_and_it_writes_on() -> None:
    model = by_name("LlamaForCausalLM")
    analysis = analyse(model.create(), model.inputs())
    group = next(g for g in analysis.space.groups if g.name == "model.layers.0.self_attn.q_proj")
    assert (group.width, group.step) == (48, 24)  # a key-value head with the two heads of queries that read it
    architecture = analysis.space.full.with_width(group.name, 24).without("model.layers.1")
    student = build(analysis, architecture)
    assert type(student) is type(analysis.teacher)
    assert student.model.layers[0].self_attn.k_proj.out_features == 12
    with torch.no_grad():
        written = student.generate(model.inputs()["input_ids"], max_new_tokens=3, do_sample=False, use_cache=False)
    assert written.shape == (2, 15)


def test_what_a_model_keeps_of_its_inputs_is_no_output() -> None:
    model = by_name("GPT2LMHeadModel")
    with pytest.raises(TraceError, match=r"is a DynamicCache.*use_cache = False"):
        analyse(model.create(use_cache=True), model.inputs())
