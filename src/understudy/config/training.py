"""How networks are trained, and where. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from understudy.config.checked import Amount, Checked, Count, Natural, Seed, Share, Threads

Precision = Literal["auto", "fp32", "bf16"]


MemoryFormat = Literal["auto", "contiguous", "channels_last"]


Start = Literal["fresh", "inherited", "compensated"]


LossName = Literal["mse", "ce", "mse+ce", "kl+ce"]


@dataclass(frozen=True, kw_only=True)
class Training(Checked):
    """How a network is trained. The one training loop serves teachers, candidates and final students."""

    epochs: Count = 5
    """Passes over the training split."""
    batch_size: Count = 128
    """Images per step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    """The optimiser; sgd has Nesterov momentum 0.9."""
    lr: Amount | None = None
    """Peak learning rate. Left out: 0.1 for sgd; else 0.01 if all norms of the network are batch norms, else 0.001."""
    weight_decay: Amount = 0.0005
    """Weight decay; not applied to biases and norms."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """Learning-rate schedule, over the steps."""
    loss: LossName = "mse"
    """mse: on the teacher's logits (N2N); ce: on labels; kl: Hinton's, on softened logits; mse+ce, kl+ce: their sum."""
    label_smoothing: Share = 0.0
    """Label smoothing of the cross-entropy, 0..1."""
    gradient_clip: Amount = 1.0
    """Maximum gradient norm (0: no clipping)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """Augmentation of the training images, drawn anew each epoch from the seed."""

    crop: Natural = 0
    """Padding in pixels before a random crop (0: no crop)."""
    flip: bool = False
    """Random horizontal flips."""


@dataclass(frozen=True, kw_only=True)
class Device(Checked):
    """Where and how numbers are computed. Precision and format are part of a result, workers are not."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass. auto: bf16 where the processor has instructions for it (AVX512-BF16, AMX, or
    CUDA from 8.0), else fp32; recorded in the run."""
    memory_format: MemoryFormat = "auto"
    """Layout of images. auto: channels_last on CPUs and for bf16 on CUDA if a step works in it, else contiguous."""
    threads: Threads = 1
    """CPU threads per training (0: all cores). Independent of `workers`, so results do not depend on it."""
    workers: Natural = 1
    """Students trained at the same time, each in a process of its own, which may crash; 0: one, in this process. On a
    cluster: students on one GPU; without GPUs, as many as its cores allow."""
    cluster: str = ""
    """Ray cluster that trains the students: auto for the one that this machine belongs to, HOST:PORT of its head, or
    local for one on this machine alone; empty: none."""
    storage: str = ""
    """Database that keeps the study, such as postgresql://USER@HOST/NAME, which runs may share; empty: study.db in the
    run folder. The password comes from PGPASSWORD or ~/.pgpass."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the address of the database."""
        scheme, sign, rest = self.storage.partition("://")
        if self.storage and not sign:
            yield f"storage must be an address such as postgresql://USER@HOST/NAME, but got {self.storage!r}"
        elif ":" in rest.partition("@")[0] and "@" in rest:
            yield f"storage must hold no password, because the run folder keeps it; put it into PGPASSWORD ({scheme}://...)"


@dataclass(frozen=True, kw_only=True)
class Candidates(Checked):
    """Evaluation of candidates during the search."""

    training: Training = field(default_factory=lambda: Training(batch_size=32))
    """Its training, by distillation: few images, so many small steps."""
    examples: Natural = 5000
    """Training images that candidates see, a stratified sample drawn once by the seed (0: all)."""
    weights: Start = "compensated"
    """Initial weights: fresh (as N2N), inherited from the teacher by slicing, or compensated: inherited, and each layer
    solved anew to give on some training examples what it gave in the teacher."""
    stop_below: Share = 0.2
    """Early-stop a student whose score after one epoch is below this fraction of the teacher's (0: never)."""


@dataclass(frozen=True, kw_only=True)
class Final(Checked):
    """Training of the best candidates to convergence."""

    students: Count = 2
    """How many of the best candidates are trained; the winner is chosen on the validation split."""
    training: Training = field(default_factory=lambda: Training(epochs=30, loss="mse+ce"))
    """Their training, by distillation."""
    weights: Start = "compensated"
    """Initial weights: fresh, inherited from the teacher by slicing, or compensated, as those of candidates. What
    decore's agents pruned is inherited from the network that learned with them in place of compensated."""
    views: Natural = 0
    """Number of augmented versions of each image, cycled over the epochs so that the teacher's logits can be cached
    (0: new ones in every epoch, each of which costs a pass of the teacher over all images)."""


@dataclass(frozen=True, kw_only=True)
class Teaching(Checked):
    """The training of a teacher."""

    training: Training = field(
        default_factory=lambda: Training(epochs=30, optimizer="sgd", loss="ce", label_smoothing=0.1)
    )
    """Its training, on labels."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Augmentation of the training images."""
    device: Device = field(default_factory=lambda: Device(threads=0))
    """Where it runs; 0 threads: all cores."""
    seed: Seed = 0
    """Seed of its initial weights and its training."""

    def problems(self) -> Iterator[str]:
        """Yield what only students can be trained with."""
        if self.training.loss != "ce":
            yield f"training.loss must be ce where nobody teaches but the labels, but got {self.training.loss!r}"
        if self.device.cluster:
            yield f"device.cluster is for students, a teacher is trained here, but got {self.device.cluster!r}"
