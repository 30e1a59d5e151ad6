"""The REST door as programs use it."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pikfix import client
from pikfix.client import (
    PikFixError,
    ServerNotReadyError,
    StepCrashedError,
    StepFailedError,
)
from pikfix.gateway.options import Options
from pikfix.gateway.problems import problem_of
from pikfix.gateway.uploads import clean_name


def level(data):
    return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0])


def test_a_photo_comes_back_as_the_picture(gateway, make_png):
    answer = gateway.send(make_png(90), name="Großmutter 1931.png")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert level(answer.content) == 255 - 90
    assert "Gro%C3%9Fmutter%201931-restored.png" in answer.headers["content-disposition"]
    state = gateway.http.get(answer.headers["location"]).json()
    assert state["state"] == "done"
    assert state["report"]["photo"]["width"] == 64
    assert gateway.http.get(state["links"]["picture"]).content == answer.content


def test_references_and_options_reach_the_server_as_they_were_sent(gateway, fake, make_png):
    photo, references = make_png(1), [make_png(2), make_png(3)]
    options = {"color": True, "format": "webp", "quality": 80}
    answer = gateway.send(photo, references, data={"options": json.dumps(options)})
    assert answer.headers["content-type"] == "image/webp"
    assert fake.calls == [(photo, references, options)]


def test_options_are_those_of_the_client():
    assert {"color", "force_color", "force_photo", "format", "quality"} <= set(Options.model_fields)
    assert not {"photo", "reference", "mask", "timeout"} & set(Options.model_fields)


def test_a_mask_reaches_the_server_as_it_was_sent(gateway, fake, make_png):
    photo, mask, reference = make_png(1), make_png(2), make_png(3)
    files = [("photo", ("a.png", photo)), ("mask", ("m.png", mask))]
    files += [("reference", ("r.png", reference))]
    assert gateway.http.post("/v1/restorations", files=files).status_code == 200
    assert fake.calls == [(photo, [reference], {"mask": mask})]
    answer = gateway.http.post("/v1/restorations", files=[*files, files[1]])
    assert (answer.status_code, "at most one mask" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"colour": true}', "there is no option 'colour'"),
        ('{"quality": "high"}', "quality: input should be a valid integer"),
        ('{"format": "bmp"}', "format: input should be 'jpeg', 'png', 'tiff' or 'webp'"),
        ("[1]", "give a JSON object"),
        ("{", "give a JSON object"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_before_anything_runs(gateway, fake, text, said):
    answer = gateway.send(data={"options": text})
    problem = answer.json()
    assert answer.status_code == problem["status"] == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == "bad_options"
    assert said in problem["detail"]
    assert fake.calls == []
    assert gateway.kept() == []


def test_a_job_is_watched_until_it_is_done(gateway, fake, make_png):
    fake.gate.clear()
    accepted = gateway.send(make_png(7), later=True)
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    job = accepted.json()
    assert accepted.headers["location"] == job["links"]["self"]
    early = gateway.http.get(job["links"]["self"] + "/picture")
    assert (early.status_code, early.json()["code"]) == (409, "not_done")
    seen = []
    with gateway.http.stream("GET", job["links"]["events"]) as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
                fake.gate.set()
    assert seen[0]["state"] in ("queued", "running")
    assert seen[-1]["state"] == "done"
    assert level(gateway.http.get(seen[-1]["links"]["picture"]).content) == 255 - 7


def test_a_deleted_job_is_cancelled_and_nothing_of_it_stays(gateway, fake, until):
    fake.gate.clear()
    job = gateway.send(later=True).json()
    until(lambda: fake.now == 1)
    place = job["links"]["self"]
    assert gateway.http.delete(place).status_code == 204
    assert (fake.cancelled, gateway.kept()) == (1, [])
    assert gateway.http.get(place).status_code == 404
    assert gateway.http.delete(place).status_code == 404


def test_an_error_of_the_server_is_told_with_its_code_and_without_its_address(gateway):
    answer = gateway.send(b"no picture")
    assert answer.status_code == 422
    assert answer.json() == {
        "type": "urn:pikfix:problem:bad_photo",
        "title": "The photo cannot be read",
        "status": 422,
        "detail": "not a picture: send a JPEG",
        "code": "bad_photo",
        "step": "decode_photo",
    }
    job = gateway.send(b"no picture", later=True).json()
    failed = gateway.finish(job["id"])
    assert failed["state"] == "failed"
    assert failed["error"]["code"] == "bad_photo"
    assert gateway.http.get(f"/v1/restorations/{job['id']}/picture").status_code == 422


def errors():
    found, todo = [], [PikFixError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return [one for one in found if one.__module__.startswith("pikfix.")]


@pytest.mark.parametrize("kind", errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_client_is_a_problem(kind):
    error = kind("it went wrong", model="pikfix_photo", step="restore", url="10.1.2.3:8001")
    problem = problem_of(error)
    assert 400 <= problem.status < 600
    assert (problem.status < 500) == isinstance(error, client.InvalidInputError)
    assert "it went wrong" in problem.detail
    assert "10.1.2.3" not in problem.detail
    assert ("Retry-After" in problem.headers) == error.passing


def test_troubles_that_pass_are_waited_for(gateway, fake):
    fake.troubles = [ServerNotReadyError("restarting"), StepCrashedError("dead")]
    assert gateway.send().status_code == 200
    assert len(fake.calls) == 3


def test_a_photo_that_kills_its_step_each_time_is_given_up(gateway, fake):
    fake.troubles = [StepCrashedError("dead") for _ in range(3)]
    answer = gateway.send()
    assert (answer.status_code, answer.json()["code"]) == (502, "step_crashed")
    assert len(fake.calls) == 3


def test_what_is_sent_again_with_its_key_is_not_done_twice(gateway, fake):
    headers = {"Idempotency-Key": "a-word-of-mine"}
    first = gateway.send(later=True, headers=headers).json()
    assert gateway.send(later=True, headers=headers).json()["id"] == first["id"]
    assert gateway.send(headers=headers).status_code == 200
    assert len(fake.calls) == 1
    assert gateway.send(later=True, headers={"Idempotency-Key": "another"}).json() != first
    gateway.http.delete(first["links"]["self"])
    assert gateway.send(later=True, headers=headers).json()["id"] != first["id"]


def test_results_go_when_their_time_is_over(start, until):
    gateway = start(keep_seconds=0.4)
    job = gateway.send(later=True).json()
    until(lambda: gateway.kept() == [])
    assert gateway.http.get(job["links"]["self"]).status_code == 404


def test_health_is_what_a_tiny_photo_says(start, fake):
    fake.troubles = [StepFailedError("no memory", code="out_of_memory")]
    sick = start()
    answer = sick.http.get("/healthz")
    assert (answer.status_code, answer.json()["code"]) == (503, "out_of_memory")
    sick.stop()
    well = start()
    assert well.http.get("/healthz").json() == {"server": "healthy"}
    assert well.http.get("/healthz").status_code == 200
    assert fake.canaries == 2, "one for each gateway: asked again, the answer is remembered"


def test_metrics_count_what_happened(gateway):
    gateway.send()
    gateway.send(b"no picture")
    text = gateway.http.get("/metrics").text
    assert 'pikfix_web_restorations_total{outcome="done"} 1.0' in text
    assert 'pikfix_web_restorations_total{outcome="bad_photo"} 1.0' in text
    route = 'method="POST",route="/v1/restorations"'
    assert f'pikfix_web_requests_total{{{route},status="200"}} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_openapi_describes_the_form_the_answers_and_the_errors(gateway):
    api = gateway.http.get("/openapi.json").json()
    post = api["paths"]["/v1/restorations"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["photo"]["format"] == "binary"
    assert set(form["schema"]["properties"]["options"]["properties"]) == set(Options.model_fields)
    assert form["examples"]
    assert {"200", "202", "400", "401", "413", "429", "503"} <= set(post["responses"])
    assert "application/problem+json" in post["responses"]["429"]["content"]
    for name in ("RestorationView", "ProblemView"):
        assert api["components"]["schemas"][name]["examples"]
    example = api["components"]["schemas"]["RestorationView"]["examples"][0]
    job = gateway.finish(gateway.send(later=True).json()["id"])
    assert set(example) == {name for name, value in job.items() if value is not None}


def test_names_of_files_are_for_showing_alone():
    assert clean_name("../../etc/passwd") == "passwd"
    assert clean_name("C:\\photos\\old.jpg") == "old.jpg"
    assert clean_name("a\r\nX: y\x00.jpg") == "aX: y.jpg"
    assert clean_name("..") == clean_name("") == clean_name(None) == "photo"
    assert len(clean_name("x" * 5000 + ".jpg")) == 150
    assert clean_name("x" * 5000 + ".jpg").endswith(".jpg")


def test_torch_is_not_imported():
    code = "import pikfix.gateway, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
