"""A CycloneDX 1.7 ML-BOM; written as plain JSON, because the library for it knows no model card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stategate.export.bill.about import NOASSERTION, Dataset
from stategate.export.bill.facts import Facts, Tool

SPEC = "1.7"
_GENAI = "genai:aibom:modelcard:"  # the taxonomy of OWASP's AIBOM project
Json = dict[str, Any]


def cyclonedx(facts: Facts) -> Json:
    """The bill; times and identifiers come from the bundle, so that it is the same every time."""
    manifest = facts.manifest
    files = [_file(path, digest) for path, digest in facts.files.items()]
    tools = [_tool(tool) for tool in facts.tools]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{facts.identity}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created,
            "tools": {"components": [_tool(tool, "application") for tool in facts.tools[:1]]},
            "component": {
                "type": "application",
                "bom-ref": "bundle",
                "name": f"{manifest.model.name} bundle",
                "version": facts.bundle.digest[:12],
                "hashes": _hashes(facts.bundle.digest),
                **_supplier(facts),
            },
            "properties": list(_properties(_declared(facts))),
        },
        "components": [_model(facts), *tools, *files],
        "dependencies": [
            {"ref": "bundle", "dependsOn": ["model", *(one["bom-ref"] for one in files)]},
            {"ref": "model", "dependsOn": sorted({one["bom-ref"] for one in tools})},
        ],
        # Nobody looked into the packages that made it.
        "compositions": [
            {"aggregate": "complete", "assemblies": ["bundle"]},
            {"aggregate": "incomplete", "assemblies": [one["bom-ref"] for one in tools]},
        ],
    }


def _model(facts: Facts) -> Json:
    manifest, about = facts.manifest, facts.about
    references = {
        "website": about.homepage,
        "vcs": about.repository,
        "documentation": about.paper,
        "distribution": about.download,
    }
    return _filled(
        {
            "type": "machine-learning-model",
            "bom-ref": "model",
            **_supplier(facts),
            "name": manifest.model.name,
            "version": facts.version,
            "description": about.description,
            # Of its weights, as they were before any pass; the graphs have digests of their own.
            "hashes": _hashes(manifest.model.sha256),
            "licenses": [{"expression": about.licence}],
            "purl": facts.purl,
            "externalReferences": [{"type": k, "url": v} for k, v in references.items() if v],
            "modelCard": _card(facts),
            "properties": list(
                _properties({"intendedUse": about.application or "; ".join(about.use_cases)})
            ),
        }
    )


def _card(facts: Facts) -> Json:
    manifest, about = facts.manifest, facts.about
    own = [_file_data(facts)] if manifest.golden else []
    parameters = {
        "approach": {"type": about.learning} if about.learning else None,
        "task": about.purpose or NOASSERTION,
        "architectureFamily": "recurrent network with a constant-size gated memory",
        "modelArchitecture": manifest.model.family,
        "datasets": own + [_dataset(data) for data in about.datasets],
        "inputs": [{"format": f"{t.name}: {t.dtype} {list(t.shape)}"} for t in manifest.inputs],
        "outputs": [{"format": f"{t.name}: {t.dtype} {list(t.shape)}"} for t in manifest.outputs],
    }
    considerations = {
        "useCases": list(about.use_cases),
        "technicalLimitations": list(facts.limitations),
        "ethicalConsiderations": [{"name": risk} for risk in about.risks],
    }
    extra = {
        f"{_GENAI}hyperparameter": _pairs(facts.hyperparameters),
        f"{_GENAI}modelCardExplainability": "; ".join(about.explainability),
    }
    return {
        "modelParameters": _filled(parameters),
        "quantitativeAnalysis": {"performanceMetrics": [*_metrics(facts)]},
        "considerations": _filled(considerations),
        "properties": list(_properties(extra)),
    }


def _metrics(facts: Facts) -> Iterator[Json]:
    for metric in facts.metrics:
        row: Json = {"type": metric.name, "value": repr(metric.value), "slice": metric.measured_on}
        if metric.interval is not None:
            low, high = repr(metric.interval.low), repr(metric.interval.high)
            row["confidenceInterval"] = {"lowerBound": low, "upperBound": high}
        yield row


def _declared(facts: Facts) -> dict[str, str]:
    """What CycloneDX has no field for, under the names that SPDX gives it."""
    about = facts.about
    energy = about.energy_kwh
    return {
        "primaryPurpose": about.purpose or NOASSERTION,
        "suppliedBy": about.supplier or NOASSERTION,
        "domain": "; ".join(about.domain) or NOASSERTION,
        "autonomyType": about.autonomous or NOASSERTION,
        "standardCompliance": "; ".join(about.standards) or NOASSERTION,
        "informationAboutApplication": about.application or NOASSERTION,
        "informationAboutTraining": about.training or NOASSERTION,
        "modelDataPreprocessing": "; ".join(about.preprocessing) or NOASSERTION,
        "safetyRiskAssessment": about.risk or NOASSERTION,
        "useSensitivePersonalInformation": about.personal or NOASSERTION,
        "energyConsumption": _pairs({k: f"{v:g} kWh" for k, v in energy.items()}) or NOASSERTION,
        "energyQuantity": f"{sum(energy.values()):g}" if energy else NOASSERTION,
        "energyUnit": "kilowattHour" if energy else NOASSERTION,
        "metric": _pairs({m.name: m.words for m in facts.metrics}),
        "metricDecisionThreshold": _pairs({k: repr(v) for k, v in facts.thresholds.items()}),
    }


def _dataset(data: Dataset) -> Json:
    properties = {"use": data.use, "sha256": data.sha256 or "", "licence": data.licence}
    contents = {"url": data.url, "properties": list(_properties(properties))}
    secrets = {"yes": ["sensitive personal information"], "no": ["none"], None: None}
    return _filled(
        {
            "type": "dataset",
            "name": data.name,
            "description": data.description,
            "contents": _filled(contents),
            "sensitiveData": secrets[data.personal],
        }
    )


def _file_data(facts: Facts) -> Json:
    path = facts.manifest.golden or ""
    sha256 = facts.files[path]
    return {
        "type": "dataset",
        "name": path,
        "description": "the golden episode: inputs of the check, and the answers that it expects",
        "contents": {"properties": list(_properties({"use": "testing", "sha256": sha256}))},
    }


def _file(path: str, sha256: str) -> Json:
    return {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": _hashes(sha256)}


def _tool(tool: Tool, kind: str = "library") -> Json:
    return {
        "type": kind,
        "bom-ref": f"{kind}:{tool.name}",
        "name": tool.name,
        "version": tool.version,
        "licenses": [{"expression": tool.licence}],
    }


def _supplier(facts: Facts) -> Json:
    about = facts.about
    url = {"url": [about.supplier_url]} if about.supplier_url else {}
    return {"supplier": {"name": about.supplier or NOASSERTION, **url}}


def _hashes(sha256: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": sha256}]


def _pairs(values: dict[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _properties(values: dict[str, str]) -> Iterator[Json]:
    return ({"name": name, "value": value} for name, value in values.items() if value)


def _filled(record: Json) -> Json:
    """Without what nobody said: empty texts, lists and objects."""
    empty: Iterable[Any] = (None, "", [], {})
    return {name: value for name, value in record.items() if value not in empty}
