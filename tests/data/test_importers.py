"""Configurations as people write them become recipes, and every key is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.data.importers.convert import convert
from luthier.errors import FileProblem, RecipeError, Unsupported
from luthier.schema.data import ImportReport
from luthier.schema.load import load_recipe, read_yaml
from luthier.schema.recipe import Recipe

AXOLOTL = """\
base_model: meta-llama/Llama-3.2-1B
adapter: qlora
load_in_4bit: true
load_in_8bit: false
strict: false
datasets:
  - path: data/support.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    train_on_eos: turn
  - path: mhenrichsen/alpaca_2k_test
    name: main
    split: train
    type: alpaca
    shards: 4
val_set_size: 0.05
output_dir: ./outputs/out
sequence_len: 4096
sample_packing: true
eval_sample_packing: false
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
wandb_project: support
wandb_name:
special_tokens:
  pad_token: <|end_of_text|>
deepspeed:
my_own_key: 3
"""

FACTORY = """\
### model
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
quantization_bit: 4
### dataset
dataset: support, identity
dataset_dir: data
template: qwen3_nothink
max_samples: 1000
mask_history: true
neat_packing: true
preprocessing_num_workers: 16
### output
output_dir: saves/qwen3
logging_steps: 10
save_steps: 500
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
lr_scheduler_type: cosine_with_restarts
warmup_ratio: 0.1
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 500
badam_mode: layer
"""
INFO = {
    "support": {"file_name": "support.json", "columns": {"prompt": "question", "response": "reply"}},
    "identity": {"hf_hub_url": "someone/identity", "subset": "en"},
}

AUTOMODEL = """\
recipe:
  _target_: nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction
step_scheduler:
  global_batch_size: 64
  local_batch_size: 8
  ckpt_every_steps: 50
  val_every_steps: 25
  num_epochs: 2
  max_steps: 200
rng:
  _target_: nemo_automodel.components.training.rng.StatefulRNG
  seed: 1111
model:
  _target_: nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained
  pretrained_model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
  torch_dtype: bf16
  attn_implementation: flash_attention_2
peft:
  _target_: nemo_automodel.components._peft.lora.PeftConfig
  match_all_linear: true
  dim: 16
  alpha: 32
distributed:
  strategy: fsdp2
  tp_size: 1
loss_fn:
  _target_: nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy
dataset:
  _target_: nemo_automodel.components.datasets.llm.column_mapped.ColumnMappedTextInstructionDataset
  path_or_dataset_id: ./train.jsonl
  column_mapping: {question: ask, answer: reply, context: passage}
  answer_only_loss_mask: true
  seq_length: 1024
  truncation: longest_first
validation_dataset:
  _target_: nemo_automodel.components.datasets.llm.squad.make_squad_dataset
  dataset_name: rajpurkar/squad
  split: validation
packed_sequence:
  packed_sequence_size: 2048
optimizer:
  _target_: torch.optim.Adam
  lr: 1.0e-5
  betas: [0.9, 0.95]
  eps: 1e-8
lr_scheduler:
  lr_decay_style: cosine
  lr_warmup_steps: 20
  min_lr: 1.0e-6
surprise: {inner: {deep: 1}}
"""

TRL = """\
model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct
dataset_name: someone/chats
use_peft: true
lora_r: 8
max_length: 512
packing: true
assistant_only_loss: true
learning_rate: 2e-4
num_train_epochs: 1
per_device_train_batch_size: 4
report_to: [wandb, neptune]
"""

SWIFT = """\
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset: ['train.jsonl#500', 'someone/alpaca']
lora_rank: 8
target_modules: all-linear
torch_dtype: bfloat16
max_length: 2048
split_dataset_ratio: 0.01
warmup_ratio: 0.05
"""


def imported(folder: Path, text: str, **wanted: str) -> tuple[Recipe, ImportReport]:
    """The recipe as it is read back from its own text, and the account."""
    (folder / "theirs.yaml").write_text(text, encoding="utf-8")
    written, report = convert(folder / "theirs.yaml", **wanted)
    (folder / "recipe.yaml").write_text(written, encoding="utf-8")
    accounted(folder / "theirs.yaml", report)
    return load_recipe(folder / "recipe.yaml"), report


def accounted(path: Path, report: ImportReport) -> None:
    """Every key of the file is carried, named as not carried, agreed with, or empty."""
    spoken = {part.split(" (")[0] for origin in report.carried.values() for part in origin.split(", ")}
    spoken |= {one.key for one in report.not_carried} | {*report.same, *report.empty}

    def visit(value: object, key: str) -> None:
        if key in spoken:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(inner, f"{key}.{name}" if key else name)
        else:
            raise AssertionError(f"nothing is said of {key}")

    visit(read_yaml(path), "")


def left(report: ImportReport) -> dict[str, str]:
    return {one.key: one.reason for one in report.not_carried}


def test_axolotl(tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, AXOLOTL)
    assert report.tool == "axolotl"
    assert recipe.model.id == "meta-llama/Llama-3.2-1B"
    assert (recipe.method.name, recipe.method.rank, recipe.method.alpha) == ("qlora", 32, 16)
    assert recipe.method.targets == "all-linear"
    assert recipe.data.train[1] == "hub:mhenrichsen/alpaca_2k_test[main]/train"
    assert recipe.data.train[0].endswith("data/support.jsonl")
    assert recipe.data.columns == {"messages": "conversations"}
    assert report.carried["data.columns.messages"] == "datasets.0.field_messages (line 9)"
    assert (recipe.data.packing, recipe.data.over_length) == (True, "drop")
    training = recipe.training
    assert (training.batch_size, training.micro_batch_size, training.sequence_length) == (8, 2, 4096)
    assert (training.learning_rate, training.epochs, training.schedule) == (2e-4, 4, "cosine")
    assert (training.activation_checkpointing, training.trackers) == ("full", ("wandb",))
    reasons = left(report)
    assert {
        "my_own_key", "special_tokens", "flash_attention", "warmup_steps", "evals_per_epoch",
        "saves_per_epoch", "optimizer", "output_dir", "datasets.0.train_on_eos", "datasets.1.shards",
    } <= set(reasons)  # fmt: skip
    assert "no counterpart" in reasons["my_own_key"]
    assert "share of all steps" in reasons["warmup_steps"]
    assert set(report.empty) == {"deepspeed", "wandb_name"}
    assert {"load_in_4bit", "load_in_8bit", "strict"} <= set(report.same)
    assert next(one.line for one in report.not_carried if one.key == "my_own_key") == 44
    text = (tmp_path / "recipe.yaml").read_text()
    assert "rank: 32 # lora_r (line 22)" in " ".join(text.split())
    assert "#   my_own_key: 3  (has no counterpart in a recipe)" in text


def test_axolotl_with_tokens_of_its_own(tmp_path: Path) -> None:
    recipe, report = imported(
        tmp_path,
        """\
base_model: some/base
adapter: lora
datasets: [{path: json, data_files: a.jsonl}]
tokens: ["<tool>", "</tool>"]
lora_modules_to_save: [embed_tokens, lm_head]
sequence_len: 512
""",
    )
    assert recipe.model.new_tokens == ("<tool>", "</tool>")
    assert report.carried["model.new_tokens"] == "tokens (line 4)"
    assert "model.new_tokens" in left(report)["lora_modules_to_save"]


def test_axolotl_with_columns_of_its_own(tmp_path: Path) -> None:
    recipe, report = imported(
        tmp_path,
        """\
base_model: some/base
datasets:
  - path: json
    data_files: [a.jsonl, b.jsonl]
    type:
      field_instruction: ask
      field_output: reply
      format: "[INST] {instruction} [/INST]"
learning_rate: 1e-5
train_on_inputs: true
eager_attention: true
max_steps: 100
warmup_steps: 10
micro_batch_size: 1
""",
    )
    assert (recipe.method.name, recipe.data.train_on, recipe.model.attention) == ("full", "all", "eager")
    assert recipe.data.columns == {"prompt": "ask", "completion": "reply"}
    assert [Path(one).name for one in recipe.data.train] == ["a.jsonl", "b.jsonl"]
    assert (recipe.training.warmup_share, recipe.training.sequence_length) == (0.1, 512)
    assert report.carried["training.sequence_length"] == "axolotl's default"
    assert "datasets.0.type.format" in left(report)


def test_llamafactory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    recipe, report = imported(tmp_path, FACTORY)
    assert report.tool == "LLaMA-Factory"
    assert (recipe.method.name, recipe.method.rank) == ("qlora", 8)
    assert report.carried["method.rank"] == "LLaMA-Factory's default"
    assert recipe.method.targets == ("q_proj", "v_proj")
    assert recipe.data.train == (str(tmp_path / "data" / "support.json"), "hub:someone/identity[en]")
    assert recipe.data.columns == {"prompt": "question", "completion": "reply"}
    assert (recipe.data.train_on, recipe.data.packing, recipe.data.max_rows) == ("last", True, 1000)
    assert (recipe.data.validation_share, recipe.data.over_length) == (0.1, "truncate")
    assert (recipe.model.trust_remote_code, recipe.model.dtype) == (True, "bfloat16")
    assert (recipe.training.batch_size, recipe.training.schedule) == (8, "linear")
    assert (recipe.training.warmup_share, recipe.training.sequence_length) == (0.1, 2048)
    reasons = left(report)
    assert "no counterpart" in reasons["badam_mode"]
    assert "cosine, linear and constant" in reasons["lr_scheduler_type"]
    assert {"template", "preprocessing_num_workers", "logging_steps"} <= set(reasons)
    assert any("each data set" in note for note in report.notes)


def test_llamafactory_without_its_registry_says_what_to_fill_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, report = imported(tmp_path, FACTORY)
    assert recipe.data.train[0].endswith("FILL_IN.jsonl")
    assert "'support' is not in a dataset_info.json" in report.missing[0]
    assert "# To fill in: data.train" in (tmp_path / "recipe.yaml").read_text()


def test_automodel(tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, AUTOMODEL)
    assert report.tool == "NeMo Automodel"
    assert (recipe.method.name, recipe.method.rank, recipe.method.alpha) == ("lora", 16, 32)
    assert recipe.data.columns == {"prompt": "ask", "completion": "reply", "input": "passage"}
    assert recipe.data.validation == ("hub:rajpurkar/squad/validation",)
    training = recipe.training
    assert (training.batch_size, training.micro_batch_size, training.max_steps) == (64, 8, 200)
    assert (training.sequence_length, recipe.data.packing, recipe.data.over_length) == (
        2048,
        True,
        "truncate",
    )
    assert (training.beta2, training.warmup_share, recipe.seed) == (0.95, 0.1, 1111)
    reasons = left(report)
    assert {"surprise.inner.deep", "lr_scheduler.min_lr", "distributed", "model.attn_implementation"} <= set(
        reasons
    )


def test_trl_and_swift(tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, TRL)
    assert (report.tool, recipe.method.name, recipe.method.rank) == ("TRL", "lora", 8)
    assert (recipe.data.train, recipe.data.train_on) == (("hub:someone/chats/train",), "assistant")
    assert recipe.training.trackers == ("wandb",)
    assert "report_to" in left(report)
    recipe, report = imported(tmp_path, SWIFT)
    assert (report.tool, recipe.method.rank, recipe.model.dtype) == ("ms-swift", 8, "bfloat16")
    assert recipe.data.validation_share == 0.01
    assert any("500 rows" in note for note in report.notes)


def test_what_is_no_configuration_or_not_there_is_said(tmp_path: Path) -> None:
    for text, error, words in (
        ("a: 1\n", FileProblem, "cannot tell whose"),
        ("- a\n", FileProblem, "not a configuration"),
        ("base_model: [x\n", RecipeError, "not valid YAML"),
        ("base_model: x\nrl: dpo\n", Unsupported, "preference tuning"),
        ("base_model: x\nadapter: ia3\n", Unsupported, "ia3 is not there"),
        ("base_model: x\nadapter: lora\nlora_r: many\n", FileProblem, "lora_r is 'many', not a number"),
        ("base_model: x\nadapter: lora\nlora_r: 0\n", RecipeError, "rank"),
        ("model_name_or_path: x\nstage: ppo\n", Unsupported, "ppo is not there yet"),
        ("model_name_or_path:\ntemplate: x\n", FileProblem, "no model is named"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(error, match=words):
            convert(tmp_path / "c.yaml")
    with pytest.raises(FileProblem, match="no importer 'axolot'") as told:
        convert(tmp_path / "c.yaml", tool="axolot")
    assert "axolotl" in (told.value.hint or "")


def test_the_command_writes_and_reports(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as gone:
            main(["import", "axolotl.yml", *words])
        return int(gone.value.code or 0)

    assert call() == 0
    assert "base_model (line 1)" in capsys.readouterr().out
    assert call("-o", "recipe.yaml") == 0
    said = capsys.readouterr()
    assert "my_own_key:44" in said.out
    assert "luthier plan recipe.yaml" in said.err
    assert load_recipe(tmp_path / "recipe.yaml").training.epochs == 4
    assert call("-o", "recipe.yaml") == 2
    assert call("-o", "recipe.yaml", "--overwrite", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == "recipe.yaml"
    assert {"carried", "not_carried", "empty", "recipe"} <= set(found)


TORCHTUNE = """\
# tune download someone/Model-1B-Instruct --output-dir ~/models/Model-1B-Instruct
output_dir: /tmp/out
model:
  _component_: torchtune.models.llama3_2.qlora_llama3_2_1b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 64
  lora_alpha: 128
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: ~/models/Model-1B-Instruct/original/tokenizer.model
  max_seq_len: 2048
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: ~/models/Model-1B-Instruct
  checkpoint_files: [model.safetensors]
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA3_2
resume_from_checkpoint: False
dataset:
  - _component_: torchtune.datasets.instruct_dataset
    source: json
    data_files: rows.jsonl
    column_map: {input: ask, output: reply}
    split: train[:90%]
  - _component_: torchtune.datasets.alpaca_cleaned_dataset
    packed: True
    cache_dir: /tmp/cache
seed: null
shuffle: True
batch_size: 4
gradient_accumulation_steps: 8
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
epochs: 2
max_steps_per_epoch: 500
clip_grad_norm: null
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.WandBLogger
  log_dir: ${output_dir}/logs
device: cuda
dtype: bf16
enable_activation_checkpointing: True
enable_activation_offloading: False
own: {key: 1}
"""


def test_torchtune(tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, TORCHTUNE)
    assert (report.tool, recipe.model.id, recipe.model.dtype) == (
        "torchtune",
        "someone/Model-1B-Instruct",
        "bfloat16",
    )
    assert (recipe.method.name, recipe.method.rank, recipe.method.alpha) == ("qlora", 64, 128)
    assert recipe.method.targets == ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
    assert Path(recipe.data.train[0]).name == "rows.jsonl"
    assert recipe.data.train[1] == "hub:yahma/alpaca-cleaned/train"
    assert recipe.data.columns == {"prompt": "ask", "completion": "reply"}
    assert (recipe.data.packing, recipe.data.train_on, recipe.data.over_length) == (True, "all", "truncate")
    training = recipe.training
    assert (training.batch_size, training.micro_batch_size, training.max_steps) == (32, 4, 1000)
    assert (training.schedule, training.warmup_share, training.learning_rate) == ("cosine", 0.1, 3e-4)
    assert (training.sequence_length, training.activation_checkpointing) == (2048, "full")
    assert training.trackers == ("wandb",)
    reasons = left(report)
    assert "no counterpart" in reasons["own.key"]
    assert {"dataset.1.cache_dir", "tokenizer.path", "optimizer.fused", "output_dir", "device"} <= set(
        reasons
    )
    assert {"clip_grad_norm", "seed"} <= set(report.empty)
    assert any("each data set" in note for note in report.notes)
    assert any("90%" in note for note in report.notes)
    assert report.carried["data.train_on"] == "torchtune's default"
    assert report.carried["data.columns.prompt"] == "dataset.0.column_map (line 27)"


def test_torchtune_full_training_of_a_local_folder_and_dpo(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = f"""\
model: {{_component_: torchtune.models.qwen2_5.qwen2_5_0_5b}}
checkpointer: {{_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: {tmp_path}/model}}
dataset: {{_component_: torchtune.datasets.text_completion_dataset, source: text, data_files: [a.txt, b.txt]}}
batch_size: 1
epochs: 3
optimizer: {{_component_: bitsandbytes.optim.PagedAdamW8bit, lr: 2e-5}}
clip_grad_norm: 0.5
"""
    recipe, report = imported(tmp_path, text)
    assert (recipe.model.id, recipe.method.name, recipe.task) == (
        str(tmp_path / "model"), "full", "text-generation",
    )  # fmt: skip
    assert [Path(one).name for one in recipe.data.train] == ["a.txt", "b.txt"]
    assert (recipe.training.schedule, recipe.training.epochs) == ("constant", 3)
    assert (recipe.training.max_grad_norm, recipe.training.weight_decay) == (0.5, 0.01)
    assert "AdamW" in left(report)["optimizer._component_"]
    pairs = TORCHTUNE.replace("modules.loss.LinearCrossEntropyLoss", "rlhf.loss.DPOLoss\n  beta: 0.2")
    start, end = pairs.index("dataset:"), pairs.index("seed: null")
    kept = "dataset: {_component_: torchtune.datasets.stack_exchange_paired_dataset}\n"
    recipe, _ = imported(tmp_path, pairs[:start] + kept + pairs[end:])
    assert recipe.preference is not None
    assert (recipe.preference.loss, recipe.preference.beta) == ("dpo", 0.2)
    assert recipe.data.columns == {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}
    with pytest.raises(Unsupported, match="ForwardKLLoss"):
        imported(tmp_path, TORCHTUNE.replace("LinearCrossEntropyLoss", "ForwardKLLoss"))


def test_noise_on_embeddings_is_carried(tmp_path: Path) -> None:
    recipe, report = imported(tmp_path, AXOLOTL + "neftune_noise_alpha: 5\n")
    assert recipe.training.neftune_alpha == 5
    assert "neftune_noise_alpha" not in left(report)
