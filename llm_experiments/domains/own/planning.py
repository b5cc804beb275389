"""The steps of a study of one's own: the same steps, of the same kinds, as every experiment's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llm_experiments.adapters.compatible import compatibility
from llm_experiments.adapters.locate import locate
from llm_experiments.adapters.of_base import against
from llm_experiments.adapters.peft_files import opened
from llm_experiments.domains.own.study import Member, StudyError, StudyFile
from llm_experiments.domains.own.task import own, own_task
from llm_experiments.domains.task import Task, keep_examples
from llm_experiments.engine.addresses import Address, Ref
from llm_experiments.engine.steps import Plan, Step
from llm_experiments.experiments.study import Base, Study
from llm_experiments.models.shapes import BaseShapes
from results.rows import RANDOM
from toytransformer.adapters import AdapterError
from toytransformer.compositions.spec import Merge
from toytransformer.merging import resolve


def planned(file: StudyFile, base: Base, shapes: BaseShapes) -> Plan:
    """What the study computes. shapes: the base by names of its layers.

    Errors: StudyError for adapters that do not fit the base or cannot be added inside a model, AdapterError
    for such as cannot be read.
    """
    digests = _given(file, shapes)
    plan = Plan()
    study = Study(base, file.profile, file.seeds, 0, plan)
    task = own(
        plan,
        questions=file.asked,
        dev=file.dev,
        training={one.name: one.taught for one in file.adapters if one.taught},
        name=file.name,
        reading=file.reading,
        logprobs=file.profile.logprobs,
    )
    plan.want(*_steps(file, study, task, digests))
    return plan


def _given(file: StudyFile, shapes: BaseShapes) -> dict[str, str]:
    """The digests of the adapters that are given, which fit the base and one another."""
    digests, library = {}, []
    rules = [resolve(merge.rule) for merge, _ in file.merges]
    moving = next((rule.name for rule in rules if rule.routed or rule.needs_data), None)
    for one in file.adapters:
        if one.given is None:
            continue
        where = f"{file.file}: [[adapters]] {one.name!r}"
        try:
            found = locate(one.given)
            adapter = opened(one.given, name=one.name)
            digests[one.name] = found.digest
        except AdapterError as error:
            raise StudyError(f"{where}: {error}") from error
        if adapter.layout == "kohya":
            raise StudyError(
                f"{where} is in kohya's layout; write it as PEFT's first: lora-limits merge {one.given} "
                f"--rule sum --model {file.base} --out FOLDER"
            )
        if problems := against(adapter, shapes):
            raise StudyError(f"{where}: {problems[0]}")
        kinds = {name: adapter.shape(name).kind for name in adapter.modules}
        others = [name for name, kind in kinds.items() if kind not in ("linear", "embedding")]
        others += [key for key, tensor in adapter.whole.items() if not tensor.frozen]
        if others:
            raise StudyError(
                f"{where} changes {others[0]}, which is neither a linear layer's update nor an embedding's, "
                "and such alone are added inside a model; leave it out"
            )
        embeddings = [name for name, kind in kinds.items() if kind == "embedding"]
        if embeddings and moving:
            raise StudyError(
                f"{where} changes the embedding {embeddings[0]}, on which {moving!r} is not defined; leave "
                "out one of the two"
            )
        library.append(adapter)
    if library and (apart := compatibility(library).problems):
        raise StudyError(f"{file.file}: {apart[0]}")
    return digests


def _steps(file: StudyFile, study: Study, task: Task, digests: Mapping[str, str]) -> Iterator[Step]:
    """The base, each adapter alone, every merge, random adapters of the same norms.

    What depends on no draw, as a sum of given adapters, is asked once and has no seed.
    """
    plan, base = study.plan, study.ask_base(task)
    yield base
    of_base = plan.add(base)
    fit = keep_examples(plan, file.fit) if file.fit else None
    given = {
        one.name: study.given(
            task, one.name, one.given, digests[one.name], own_task(plan, file.asked, one.name)
        )
        for one in file.adapters
        if one.given is not None
    }
    for seed in study.seeds:
        library = {
            one.name: given.get(one.name) or study.train(task, one.name, study.profile.training, seed, place)
            for place, one in enumerate(file.adapters)
        }
        if "alone" in file.controls:
            for name, address in library.items():
                own_seed = None if name in given else seed
                yield study.ask(
                    task,
                    {name: address},
                    Merge("sum"),
                    base=of_base,
                    seed=own_seed,
                    layers=_layers(file, (name,)),
                    control=name,
                )
        for merge, of in file.merges:
            rule = resolve(merge.rule)
            drawn = rule.seeded or rule.needs_data or not given.keys() >= set(of)
            yield _asked(
                file,
                study,
                task,
                {name: library[name] for name in of},
                merge,
                of_base,
                fit,
                seed if drawn else None,
            )
        if RANDOM in file.controls:
            merge, of = _of_random(file)
            randoms = {name: study.random(library[name], seed) for name in of}
            yield study.ask(
                task, randoms, merge, base=of_base, seed=seed, layers=_layers(file, of), control=RANDOM
            )


def _asked(
    file: StudyFile,
    study: Study,
    task: Task,
    library: Mapping[str, Address],
    merge: Merge,
    base: Address,
    fit: Ref | None,
    seed: int | None,
) -> Step:
    """One merge, its temperature chosen and its weights fitted where it has such."""
    rule, layers = resolve(merge.rule), _layers(file, tuple(library))
    chosen = rule.tempered and task.dev is not None and "temperature" not in merge.option_dict
    return study.ask(
        task,
        library,
        merge,
        base=base,
        seed=seed,
        layers=layers,
        sweep=study.sweep(task, library, merge) if chosen else None,
        fit=fit if rule.needs_data else None,
        training=study.profile.training if layers and rule.fitted_by == "train" else None,
    )


def _of_random(file: StudyFile) -> tuple[Merge, tuple[str, ...]]:
    """How random adapters are merged: by the study's first rule without data or routing, else the mean."""
    for merge, of in file.merges:
        rule = resolve(merge.rule)
        if not rule.routed and not rule.needs_data:
            return merge, of
    return Merge("mean"), tuple(one.name for one in file.adapters)


def _layers(file: StudyFile, names: tuple[str, ...]) -> str | None:
    """What the adapters change, where all of them are trained here."""
    members: dict[str, Member] = {one.name: one for one in file.adapters}
    return file.profile.training.layers if all(members[name].taught for name in names) else None
