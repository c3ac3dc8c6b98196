"""Where the facts about items are: the ``dataset.knowledge_graph`` section."""

from __future__ import annotations

from pydantic import Field

from pipelines.config_section import Section


class Triples(Section):
    """File of the facts, one a row, by id of entity and relation."""

    source: str = "kg.parquet"
    head: str = "head"
    relation: str = "relation"
    tail: str = "tail"


class Links(Section):
    """File that says which entity an item is."""

    source: str = "kg_item_entity.parquet"
    item: str = "item_id"
    entity: str = "entity_id"


class Names(Section):
    """File with the name of every relation, or of every entity."""

    source: str
    id: str
    name: str


class KnowledgeFiles(Section):
    """Facts about items. Sources are relative to the same folder as those of users and items."""

    triples: Triples = Triples()
    links: Links = Links()
    relations: Names | None = None
    entities: Names | None = None
    entity_core: int = Field(default=0, ge=0, description="triples that an entity must have, unless it is an item")

    def sources(self) -> list[str]:
        """Every file."""
        named = [names.source for names in (self.relations, self.entities) if names is not None]
        return [self.triples.source, self.links.source, *named]
