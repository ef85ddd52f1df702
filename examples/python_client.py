"""Ask a running server what images are: python examples/python_client.py 127.0.0.1:50051 FOLDER"""

import asyncio
import sys
from pathlib import Path

from deepmcat_client import AsyncClient, Categorization, Client


def one_after_another(address: str, folder: Path) -> None:
    """Without asyncio: answers come in order, and an image that cannot be read has its error for an answer."""
    with Client(address) as client:
        print("artifact", client.get_artifact().artifact.artifact_id[:12])
        files = ((path.name, path) for path in sorted(folder.iterdir()) if path.is_file())
        for name, answer in client.categorize_stream(files):
            if isinstance(answer, Categorization):
                print(name, answer.assignment.category, f"{answer.assignment.distance:.3f}")
            else:
                print(name, answer.reason)


async def with_asyncio(address: str, path: Path) -> None:
    """The same client for asyncio; errors are classes, from deepmcat_client.errors."""
    async with AsyncClient(address, timeout_s=10) as client:
        answer = await client.categorize(path)
        print(path.name, [candidate.category for candidate in answer.assignment.candidates])


if __name__ == "__main__":
    server, directory = sys.argv[1], Path(sys.argv[2])
    one_after_another(server, directory)
    asyncio.run(with_asyncio(server, next(path for path in sorted(directory.iterdir()) if path.is_file())))
