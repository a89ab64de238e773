"""How far a store has come: done, diverged, failed and why, unfinished, and the time that is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rankscope.study.store import Store


@dataclass(frozen=True)
class Overview:
    """Trials of the study by what became of them."""

    store: str
    planned: int
    done: int
    diverged: int  # among the done: the loss left the numbers, which is a result
    failed: dict[str, str]  # trial id -> reason
    running: int  # begun and not finished
    is_being_written: bool
    seconds_left: float | None

    def line(self) -> str:
        diverged = f" ({self.diverged} of them diverged)" if self.diverged else ""
        failed = (
            f", {len(self.failed)} failed (rankscope status {self.store} says why)" if self.failed else ""
        )
        return f"{self.done} of {self.planned} trials done{diverged}{failed}"

    def text(self) -> str:
        """What ``rankscope status`` prints."""
        lines = [self.line()]
        if self.running:
            state = "running now" if self.is_being_written else "interrupted: rankscope run trains them again"
            lines.append(f"{self.running} begun and not finished ({state})")
        for reason, count in Counter(self.failed.values()).most_common():
            example = next(trial for trial, why in self.failed.items() if why == reason)
            lines.append(
                f"failed, {count} trial{'s' * (count > 1)}: {reason}  [{self.store}/trials/{example}]"
            )
        if self.seconds_left is not None and self.done < self.planned:
            lines.append(f"about {duration(self.seconds_left)} left, at the rate so far")
        return "\n".join(lines)


def overview(store: Store) -> Overview:
    """Reads the store as it is now; others may be writing it."""
    planned = store.planned()
    results = store.trials()
    mine = results[results["trial"].isin([trial.id for trial in planned])]
    missing = [trial for trial in planned if trial.id not in set(mine["trial"])]
    begun = {folder.path.name: folder for folder in store.folders()}
    failed = {t.id: why for t in missing if t.id in begun and (why := begun[t.id].failure) is not None}
    seconds = mine.groupby(["task", "method"])["seconds"].mean()
    left = [float(seconds.get((t.task, t.method), mine["seconds"].mean())) for t in missing]
    return Overview(
        store=str(store.path),
        planned=len(planned),
        done=len(mine),
        diverged=int((mine["status"] == "diverged").sum()),
        failed=failed,
        running=sum(t.id in begun and t.id not in failed for t in missing),
        is_being_written=store.is_being_written,
        seconds_left=sum(left) if len(mine) else None,
    )


def duration(seconds: float) -> str:
    """3 h 20 min, 4 min 10 s, 12 s."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"
