"""An SPDX 3.0.1 document with the profiles for software, AI, datasets and licences, as JSON-LD."""

from __future__ import annotations

from typing import Any

from stategate.export.bill.about import NOASSERTION, Dataset
from stategate.export.bill.facts import Facts, Tool

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_TERMS = "https://spdx.org/rdf/3.0.1/terms"
_NO_LICENCE = f"{_TERMS}/ExpandedLicensing/NoAssertionLicense"
_NOBODY = f"{_TERMS}/Core/NoAssertionElement"
_INFO = "_:creation"
Json = dict[str, Any]


def spdx(facts: Facts) -> Json:
    """The document; times and identifiers come from the bundle, so that it is the same always."""
    return _Document(facts).whole()


class _Document:
    """A graph of elements, which are found by their identifiers."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._elements: dict[str, Json] = {}

    def whole(self) -> Json:
        facts = self._facts
        author = self._add("Agent", "author", name=facts.about.supplier or NOASSERTION)
        model = self._model()
        for tool in facts.tools:
            package = self._tool(tool)
            self._relate(model, "usesTool", package, f"tool-{tool.name}")
        files = [self._file(path, sha256) for path, sha256 in facts.files.items()]
        self._relate(model, "contains", files, "files")
        for data in facts.about.datasets:
            relation = "trainedOn" if data.use == "training" else "testedOn"
            self._relate(model, relation, self._dataset(data), f"data-{data.name}")
        if facts.manifest.golden:
            golden = self._id(f"file/{facts.manifest.golden}")
            self._relate(model, "testedOn", golden, "golden")
        writer = self._add("Tool", "stategate", name="stategate")
        elements = list(self._elements)
        profiles = ["core", "software", "ai", "dataset", "simpleLicensing"]
        self._add(
            "SpdxDocument",
            "document",
            name=f"{facts.manifest.model.name} {facts.version}",
            rootElement=[model],
            element=elements,
            profileConformance=profiles,
        )
        creation = {
            "type": "CreationInfo",
            "@id": _INFO,
            "specVersion": "3.0.1",
            "created": facts.manifest.created,
            "createdBy": [author],
            "createdUsing": [writer],
        }
        return {"@context": CONTEXT, "@graph": [creation, *self._elements.values()]}

    def _model(self) -> str:
        facts, about, manifest = self._facts, self._facts.about, self._facts.manifest
        references = {"vcs": about.repository, "documentation": about.paper}
        model = self._add(
            "ai_AIPackage",
            "model",
            name=manifest.model.name,
            description=about.description,
            suppliedBy=self._id("author") if about.supplier else _NOBODY,
            releaseTime=manifest.created,
            builtTime=manifest.created,
            verifiedUsing=_hashes(facts.bundle.digest),
            software_packageVersion=facts.version,
            software_downloadLocation=about.download or NOASSERTION,
            software_homePage=about.homepage,
            software_packageUrl=facts.purl,
            software_primaryPurpose="model",
            software_copyrightText=NOASSERTION,
            externalRef=[
                {"type": "ExternalRef", "externalRefType": kind, "locator": [url]}
                for kind, url in references.items()
                if url
            ],
            ai_autonomyType=about.autonomous or "noAssertion",
            ai_domain=list(about.domain),
            ai_energyConsumption=self._energy(),
            ai_hyperparameter=_entries(facts.hyperparameters),
            ai_informationAboutApplication=about.application or about.purpose or NOASSERTION,
            ai_informationAboutTraining=about.training or NOASSERTION,
            ai_limitation="; ".join(facts.limitations),
            ai_metric=_entries({metric.name: metric.words for metric in facts.metrics}),
            ai_metricDecisionThreshold=_entries({k: repr(v) for k, v in facts.thresholds.items()}),
            ai_modelDataPreprocessing=list(about.preprocessing),
            ai_modelExplainability=list(about.explainability),
            ai_safetyRiskAssessment=about.risk,
            ai_standardCompliance=list(about.standards),
            ai_typeOfModel=[manifest.model.family, "constant-size gated memory"],
            ai_useSensitivePersonalInformation=about.personal or "noAssertion",
        )
        self._licence(model, about.licence, "model")
        return model

    def _energy(self) -> Json | None:
        names = {"training": "training", "fine-tuning": "finetuning", "inference": "inference"}
        spent = {
            f"ai_{names[activity]}EnergyConsumption": [
                {
                    "type": "ai_EnergyConsumptionDescription",
                    "ai_energyQuantity": kwh,
                    "ai_energyUnit": "kilowattHour",
                }
            ]
            for activity, kwh in self._facts.about.energy_kwh.items()
        }
        return {"type": "ai_EnergyConsumption", **spent} if spent else None

    def _tool(self, tool: Tool) -> str:
        package = self._add(
            "software_Package",
            f"tool/{tool.name}",
            name=tool.name,
            software_packageVersion=tool.version,
            software_primaryPurpose="library",
        )
        self._licence(package, tool.licence, f"tool-{tool.name}")
        return package

    def _file(self, path: str, sha256: str) -> str:
        kind = {"onnx": "model", "c": "source", "h": "source", "so": "library"}
        return self._add(
            "software_File",
            f"file/{path}",
            name=path,
            verifiedUsing=_hashes(sha256),
            software_primaryPurpose=kind.get(path.rpartition(".")[2], "data"),
        )

    def _dataset(self, data: Dataset) -> str:
        package = self._add(
            "dataset_DatasetPackage",
            f"data/{data.name}",
            name=data.name,
            description=data.description,
            releaseTime=self._facts.manifest.created,
            builtTime=self._facts.manifest.created,
            originatedBy=[_NOBODY],
            verifiedUsing=_hashes(data.sha256) if data.sha256 else None,
            software_downloadLocation=data.url or NOASSERTION,
            software_primaryPurpose="data",
            dataset_datasetType=[data.kind or "noAssertion"],
            dataset_hasSensitivePersonalInformation=data.personal or "noAssertion",
        )
        self._licence(package, data.licence, f"data-{data.name}")
        return package

    def _licence(self, element: str, text: str, name: str) -> None:
        """Both relations that the AI profile asks for; what nobody concluded is not asserted."""
        declared = _NO_LICENCE
        if text != NOASSERTION:
            declared = self._add(
                "simplelicensing_LicenseExpression",
                f"licence/{text}",
                simplelicensing_licenseExpression=text,
            )
        self._relate(element, "hasDeclaredLicense", declared, name)
        self._relate(element, "hasConcludedLicense", _NO_LICENCE, name)

    def _relate(self, one: str, how: str, other: str | list[str], name: str) -> None:
        to = other if isinstance(other, list) else [other]
        ends: Json = {"from": one, "to": to}
        self._add("Relationship", f"{how}/{name}", relationshipType=how, **ends)

    def _add(self, kind: str, place: str, /, **fields: Any) -> str:
        identity = self._id(place)
        filled = {key: value for key, value in fields.items() if value not in (None, "", [])}
        self._elements[identity] = {
            "type": kind,
            "spdxId": identity,
            "creationInfo": _INFO,
            **filled,
        }
        return identity

    def _id(self, name: str) -> str:
        plain = "".join(c if c.isalnum() and c.isascii() or c in "._-/" else "-" for c in name)
        return f"urn:uuid:{self._facts.identity}#{plain}"


def _hashes(sha256: str) -> list[Json]:
    return [{"type": "Hash", "algorithm": "sha256", "hashValue": sha256}]


def _entries(values: dict[str, str]) -> list[Json]:
    return [{"type": "DictionaryEntry", "key": key, "value": text} for key, text in values.items()]
