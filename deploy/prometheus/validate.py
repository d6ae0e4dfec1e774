"""Checks the alert rules: their form, and that every metric and label they name exists; then breaks them on purpose and asserts that each
break is found. The metrics are those of docs/generated/metrics.md, which a test keeps equal to the services' table."""

import copy
import pathlib
import re
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "generated" / "metrics.md"
DURATION = re.compile(r"(\d+(ms|s|m|h|d|w))+")
# Added by Prometheus itself to whatever it scrapes.
ANYWHERE = {"instance", "job"}


def metrics():
    """Name → labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| [^|]* \| ([^|]*) \|", PAGE.read_text(), re.M)
    assert len(rows) > 50, f"{PAGE} has no table of metrics"
    return {name: {label.strip() for label in labels.split(",") if label.strip()} for name, _, labels in rows}


def balanced(text):
    depth = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return False
    return depth == 0


def check(document, known):
    """Everything that is wrong."""
    wrong = []
    names = set()
    groups = document.get("groups") if isinstance(document, dict) else None
    if not groups:
        return ["no groups"]
    for group in groups:
        if set(group) - {"name", "interval", "rules"} or not group.get("name"):
            wrong.append(f"group {group.get('name')}: unknown or missing fields")
        for rule in group.get("rules") or [{}]:
            name = rule.get("alert", "")
            say = lambda message: wrong.append(f"{name or 'a rule'}: {message}")
            for field in sorted(set(rule) - {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}):
                say(f"unknown field {field}")
            if not re.fullmatch(r"[A-Z][A-Za-z]+", name) or name in names:
                say("the name is not CamelCase, or taken")
            names.add(name)
            if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
                say("severity is neither critical nor warning")
            if not DURATION.fullmatch(str(rule.get("for", ""))):
                say("for is no duration")
            for field in ("summary", "remedy"):
                if not rule.get("annotations", {}).get(field):
                    say(f"no {field}")
            expr = rule.get("expr", "")
            used = set(re.findall(r"\b(millrace_\w+)", expr))
            if not used or not balanced(expr) or not re.search(r"[<>=]=?", expr):
                say("the expression compares no metric")
            for metric in sorted(used - set(known)):
                say(f"unknown metric {metric}")
            labels = set().union(*(known.get(metric, set()) for metric in used)) | ANYWHERE
            told = set(re.findall(r"\$labels\.(\w+)", " ".join(map(str, rule.get("annotations", {}).values()))))
            grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expr) for label in by.split(",")}
            for label in sorted((told | grouped) - labels):
                say(f"unknown label {label}")
            aggregated = re.search(r"\b(max|min|sum|avg|count)\b(?! by)\s*\(", expr)
            if told and (aggregated or grouped) and told - grouped:
                say(f"the expression has no label {', '.join(sorted(told - grouped))} left")
    return wrong


def rule(document, at=0):
    return document["groups"][0]["rules"][at]


# What is done to the good rules, and a word that the report must contain then.
MUTATIONS = [
    ("a metric that does not exist", lambda d: rule(d).update(expr="millrace_bridge_kafka_avialable == 0"), "unknown metric"),
    ("a label that the metric does not have", lambda d: rule(d, 5).update(expr="max by (brocker) (millrace_bridge_broker_leader_imbalance_ratio) > 1"), "unknown label"),
    ("a label that was aggregated away", lambda d: rule(d, 5).update(expr="max(millrace_bridge_broker_leader_imbalance_ratio) > 1"), "no label broker left"),
    ("a bracket that is not closed", lambda d: rule(d, 1).update(expr="max(millrace_bridge_offline_partitions > 0"), "compares no metric"),
    ("no comparison", lambda d: rule(d).update(expr="millrace_bridge_kafka_available"), "compares no metric"),
    ("a misspelt field", lambda d: rule(d).update(annotation={}), "unknown field annotation"),
    ("no duration", lambda d: rule(d).update({"for": "a while"}), "for is no duration"),
    ("no remedy", lambda d: rule(d)["annotations"].pop("remedy"), "no remedy"),
    ("a severity of its own", lambda d: rule(d)["labels"].update(severity="loud"), "severity"),
    ("a name twice", lambda d: rule(d, 1).update(alert=rule(d)["alert"]), "taken"),
    ("nothing", lambda d: d.clear(), "no groups"),
]


def main():
    known = metrics()
    files = sorted(HERE.glob("*.yaml"))
    assert files, f"no rules in {HERE}"
    failed = 0
    for file in files:
        document = yaml.safe_load(file.read_text())
        for line in check(document, known):
            print(f"{file.name}: {line}", file=sys.stderr)
            failed += 1
        if failed:
            continue
        for name, mutate, word in MUTATIONS:
            broken = copy.deepcopy(document)
            mutate(broken)
            report = check(broken, known)
            if not any(word in line for line in report):
                print(f"{file.name}: {name} was not found: {report}", file=sys.stderr)
                failed += 1
    rules = sum(len(group["rules"]) for file in files for group in yaml.safe_load(file.read_text())["groups"])
    print(f"alert rules: {rules} good, {len(MUTATIONS)} ways to break them found" if not failed else f"alert rules: {failed} mistakes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
