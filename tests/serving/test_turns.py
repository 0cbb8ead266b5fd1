"""Templates written as text around turns, for runtimes without Jinja."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llamacpp.conftest import CHATML
from luthier.data.template import compile_template
from luthier.errors import LuthierError, Unsupported
from luthier.serving.ollama import go_template
from luthier.serving.turns import turns_of

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SMOL = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Smol.<|im_end|>\n{% endif %}"
    + CHATML
)
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(s='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.s = m['content'] + '\n\n' %}{% else %}<turn>"
    "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ ns.s if m['role'] == 'user' else '' }}{% if m['role'] == 'user' %}{% set ns.s = '' %}{% endif %}"
    "{{ m['content'] }}<end>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}:{{ m['content'] }};{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}" + CHATML
)


def rendering(source):
    template = compile_template(source)

    def render(messages, answer_follows):
        try:
            return template.render(
                messages=list(messages),
                add_generation_prompt=answer_follows,
                bos_token="<s>",
                eos_token="</s>",
            )
        except Exception as error:
            raise LuthierError(str(error)) from None

    return render


def test_pieces_of_common_templates():
    chatml = turns_of(rendering(CHATML))
    assert chatml.user == ("<|im_start|>user\n", "<|im_end|>\n")
    assert chatml.answer == "<|im_start|>assistant\n"
    assert chatml.default_system is None
    llama = turns_of(rendering(LLAMA3), bos="<s>")
    assert (llama.start, llama.trims) == ("", True)
    assert turns_of(rendering(SMOL)).default_system == "You are Smol."
    gemma = turns_of(rendering(GEMMA), bos="<s>")
    assert (gemma.system, gemma.glue, gemma.answer) == (None, "\n\n", "<turn>model\n")
    assert turns_of(rendering(NO_SYSTEM)).user == chatml.user


def test_a_template_that_does_more_is_refused():
    with pytest.raises(Unsupported, match="text around turns"):
        turns_of(rendering(NUMBERED))


def conversations():
    say = {"s": "system", "u": "user", "a": "assistant"}
    shapes = ("u", "su", "uau", "suauau")
    return [
        [{"role": say[turn], "content": f"{turn}{n} line\nline é"} for n, turn in enumerate(shape)]
        for shape in shapes
    ]


def go_rendered(cases, folder):
    """What Go's own text/template makes of templates, given what Ollama gives them."""
    program = Path(__file__).parent / "render_go.txt"
    shutil.copyfile(program, folder / "main.go")
    done = subprocess.run(
        [shutil.which("go"), "run", "main.go"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOCACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.timeout(600)
def test_go_writes_what_jinja_writes(tmp_path):
    cases, wanted = [], []
    sources = [CHATML, LLAMA3, SMOL, GEMMA]
    folder = os.environ.get("LUTHIER_TEST_TEMPLATES")
    sources += [path.read_text() for path in sorted(Path(folder).rglob("*.jinja"))] if folder else []
    for source in sources:
        render = rendering(source)
        try:
            turns = turns_of(render, bos="<s>")
        except Unsupported:
            continue
        for chat in conversations():
            try:
                wanted.append(render(chat, True).removeprefix("<s>"))
            except LuthierError:
                continue
            system = chat[0]["content"] if chat[0]["role"] == "system" else ""
            messages = [{"Role": m["role"], "Content": m["content"]} for m in chat]
            cases.append({"Template": go_template(turns), "System": system, "Messages": messages})
    assert len(cases) >= 16
    assert go_rendered(cases, tmp_path) == wanted
