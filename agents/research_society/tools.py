"""The society's tools: literature and trial search, protein and gene look-up.

With a web-search key (TAVILY_API_KEY) searches go to the web, restricted to PubMed or
ClinicalTrials.gov. Without one they search a local index over the task set by BM25: real retrieval,
and no answer can leak, because the index holds abstracts without their conclusions.
"""

import os
from collections.abc import Sequence
from typing import Protocol

import bm25s
import httpx
import orjson
from langchain_core.tools import BaseTool, StructuredTool

from research_society.tasks import ResearchTask

RESULTS = 5
WEB_SEARCH_KEY = "TAVILY_API_KEY"
WEB_SEARCH_URL = "https://api.tavily.com/search"

PROTEINS = {
    "amyloid-beta": "Amyloid-beta: peptide cut from APP; forms the plaques of Alzheimer's disease.",
    "tau": "Tau: stabilises microtubules; hyperphosphorylated it forms neurofibrillary tangles.",
    "apoe4": "ApoE4: lipid carrier; the strongest common risk gene for late Alzheimer's disease.",
    "trem2": "TREM2: receptor of microglia; its loss raises the risk of Alzheimer's disease.",
    "glp-1": "GLP-1: incretin hormone; its receptor agonists treat type 2 diabetes.",
}
GENES = {
    "apoe4": "APOE4 (gene ontology): lipid transport; lipoprotein binding; amyloid-beta clearance.",
    "trem2": "TREM2 (gene ontology): microglial activation; phagocytosis; innate immune response.",
}


class Search(Protocol):
    """Finds documents by a query."""

    async def __call__(self, query: str) -> list[dict[str, object]]:
        """Return up to RESULTS documents, the best first, each with an id and sections or a
        snippet.
        """
        ...


class LocalIndex:
    """BM25 over the abstracts of a task set.

    Args:
        must_mention: keep only abstracts with one of these words; empty keeps all.
    """

    def __init__(self, tasks: Sequence[ResearchTask], must_mention: Sequence[str] = ()) -> None:
        self._tasks = [
            task
            for task in tasks
            if not must_mention or any(word in task.context.lower() for word in must_mention)
        ]
        self._index = bm25s.BM25()
        # BM25 refuses an empty index.
        if self._tasks:
            texts = [f"{task.goal} {task.context}" for task in self._tasks]
            self._index.index(
                bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False
            )

    async def __call__(self, query: str) -> list[dict[str, object]]:
        """Return the best matching abstracts."""
        if not self._tasks:
            return []
        tokens = bm25s.tokenize(query, stopwords="en", show_progress=False)
        count = min(RESULTS, len(self._tasks))
        found, _ = self._index.retrieve(tokens, k=count, show_progress=False)
        return [
            {"id": task.id, "sections": [section.model_dump() for section in task.sections]}
            for task in (self._tasks[int(index)] for index in found[0])
        ]


class WebSearch:
    """A web search restricted to one site."""

    def __init__(self, key: str, site: str, url: str = WEB_SEARCH_URL) -> None:
        self._key = key
        self._site = site
        self._url = url

    async def __call__(self, query: str) -> list[dict[str, object]]:
        """Return the provider's results."""
        body = {"query": query, "include_domains": [self._site], "max_results": RESULTS}
        async with httpx.AsyncClient(timeout=20.0) as http:
            answer = await http.post(
                self._url, json=body, headers={"authorization": f"Bearer {self._key}"}
            )
            answer.raise_for_status()
        results: list[dict[str, object]] = answer.json()["results"]
        return [
            {"id": result["url"], "sections": [{"label": "SNIPPET", "text": result["content"]}]}
            for result in results
        ]


def build_tools(tasks: Sequence[ResearchTask]) -> list[BaseTool]:
    """Return the four tools for a task set."""
    # Without a key the tools search the tasks themselves: real retrieval, and no network.
    key = os.environ.get(WEB_SEARCH_KEY)
    papers: Search = WebSearch(key, "pubmed.ncbi.nlm.nih.gov") if key else LocalIndex(tasks)
    trials: Search = (
        WebSearch(key, "clinicaltrials.gov")
        if key
        else LocalIndex(tasks, ("trial", "randomi", "placebo"))
    )

    async def pubmed_search(query: str) -> str:
        """Search PubMed for abstracts about a question."""
        return orjson.dumps(await papers(query)).decode()

    async def clinical_trials_search(query: str) -> str:
        """Search clinical trials about a question."""
        return orjson.dumps(await trials(query)).decode()

    def protein_lookup(name: str) -> str:
        """Look up what a protein does."""
        return _looked_up(PROTEINS, "protein", name)

    def gene_ontology_lookup(gene: str) -> str:
        """Look up a gene's ontology terms."""
        return _looked_up(GENES, "gene", gene)

    return [
        StructuredTool.from_function(coroutine=pubmed_search),
        StructuredTool.from_function(coroutine=clinical_trials_search),
        StructuredTool.from_function(func=protein_lookup),
        StructuredTool.from_function(func=gene_ontology_lookup),
    ]


def _looked_up(table: dict[str, str], kind: str, name: str) -> str:
    known = ", ".join(table)
    return table.get(name.strip().lower(), f"No {kind} {name!r} in the table; it has {known}.")
