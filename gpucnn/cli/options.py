"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from gpucnn.runs.folder import DATA_NAMES

BackendName = Annotated[str, typer.Option("--backend", help="auto, numpy, reference, cupy or cupy:N.")]
Data = Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Default: what the model was trained on.")]
DataDir = Annotated[Path | None, typer.Option(help="The folder of the data.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, or float16 on a GPU.")]
Epochs = Annotated[
    float | None, typer.Option(min=0.001, help="Number of epochs, such as 10 or 2.5. Default: the recipe's.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the results to this JSON file.")]
NamedNetwork = Annotated[str | None, typer.Option(help="A named network with fresh weights. Default: lenet.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="PNG, SVG or PDF, by file extension. Default: next to the model."),
]
Run = Annotated[Path | None, typer.Argument(help="A run folder or a .safetensors file. Default: the newest run.")]
SavedModel = Annotated[
    Path | None, typer.Option("--model", help="A run folder or a .safetensors file. Default: the newest run.")
]
OtherModel = Annotated[
    Path | None, typer.Option("--model", help="Instead of --network: a run folder or a .safetensors file.")
]
