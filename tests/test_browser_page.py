"""The page of an export, in a real browser: what it shows is what Python says of the same texts."""

import functools
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from labelled_files import FAST, MOODS, TINY, sentences, write_csv
from scripts import run_forked
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from chinchilla_hf.export import export_classifier
from chinchilla_hf.runtime import OnnxTextClassifier

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE_MODULES = os.environ.get("TRANSFORMERS_JS")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(
        NODE_MODULES is None, reason="TRANSFORMERS_JS does not name a node_modules with @huggingface/transformers"
    ),
]

# A page around the page: it types the texts one by one, and sends what is shown for each.
DRIVER = """<!doctype html><iframe id="page" src="/index.html" style="width: 800px; height: 600px"></iframe>
<script type="module">
const frame = document.getElementById("page");
const until = async (is) => { while (!is()) await new Promise((resolve) => setTimeout(resolve, 20)); };
const page = () => frame.contentDocument;
const failed = () => page().querySelector("#status.error")?.textContent;
await until(() => page()?.documentElement.dataset.readyAfter || failed());
const shown = {ready_after: page().documentElement.dataset.readyAfter, error: failed(), scores: {}};
for (const weights of shown.error ? [] : ["q8", "fp32"]) {
  shown.scores[weights] = [];
  page().getElementById("weights").value = weights;
  for (const text of TEXTS) {
    page().getElementById("labels").replaceChildren();
    page().getElementById("text").value = text;
    page().getElementById("text").dispatchEvent(new Event("input"));
    await until(() => page().querySelector("li") || failed());
    const items = [...page().querySelectorAll("li")];
    shown.scores[weights].push(Object.fromEntries(items.map((li) => [li.dataset.label, Number(li.dataset.score)])));
  }
}
await fetch("/shown", {method: "POST", body: JSON.stringify(shown)});
</script>"""


def show_in_browser(folder: Path, texts: list[str], profile: Path) -> dict:
    """What the page in `folder` shows for `texts`."""
    received: queue.Queue[dict] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

        def do_GET(self):
            if self.path != "/driver":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(DRIVER.replace("TEXTS", json.dumps(texts)).encode())

        def do_POST(self):
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        [*command, f"http://127.0.0.1:{server.server_port}/driver"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as browser:
        try:
            return received.get(timeout=120)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            server.shutdown()
            server.server_close()


def test_the_page_shows_what_python_says(tmp_path):
    write_csv(tmp_path / "reviews.csv", sentences(240, moods=tuple(MOODS)))
    options = {"dataset": tmp_path / "reviews.csv", **TINY, **FAST, "baseline": False, "num_train_epochs": 8}
    ended = run_forked("classify", {**options, "output_dir": tmp_path / "model"})
    assert ended.code == 0, ended.errors
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    texts = [text for text, _ in sentences(12, seed=1, moods=tuple(MOODS))] + ['naïve <b>"quoted"</b> & 東京']
    # So small a model is no faster in int8: that is no matter here.
    export_classifier(model, tokenizer, tmp_path / "export", texts, transformers_js=NODE_MODULES, force=True)
    shown = show_in_browser(tmp_path / "export", texts, tmp_path / "profile")
    assert shown.get("error") is None and float(shown["ready_after"]) > 0
    quantized = OnnxTextClassifier(tmp_path / "export")
    whole = pipeline("text-classification", str(tmp_path / "model"), top_k=None)
    for weights, classify in (
        ("q8", lambda text: quantized(text, top_k=None)),
        ("fp32", lambda text: whole([text])[0]),
    ):
        assert len(shown["scores"][weights]) == len(texts)
        for text, scores in zip(texts, shown["scores"][weights], strict=True):
            expected = {item["label"]: item["score"] for item in classify(text)}
            assert scores == pytest.approx(expected, abs=0.01)
    assert max(shown["scores"]["fp32"][0].values()) > 0.5
