// Looking around in the page's graph.

import { app } from '../../scripts/app.js'

/** The graph of the open workflow. */
export function root() {
  return app.rootGraph ?? app.graph
}

/** [id as the server has it, node] of all nodes, also those in subgraphs. */
export function* nodesOf(graph, before = '') {
  for (const node of graph?.nodes ?? []) {
    yield [`${before}${node.id}`, node]
    if (node.subgraph) yield* nodesOf(node.subgraph, `${before}${node.id}:`)
  }
}

/** The node under an id as the server has it: "5", or "3:5" for node 5 in the subgraph that is node 3. */
export function nodeAt(id) {
  let graph = root()
  let node
  for (const part of String(id).split(':')) {
    node = graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node ?? null
}

/** Whether a link sets a node's input. */
export function isLinked(node, name) {
  const slot = slotOf(node, name)
  return slot >= 0 && node.isInputConnected(slot)
}

/** The node that an input's link comes from, null where there is none. */
export function sourceOf(node, name) {
  const slot = slotOf(node, name)
  return slot >= 0 ? (node.getInputNode(slot) ?? null) : null
}

function slotOf(node, name) {
  return node?.inputs?.findIndex((input) => input.name === name) ?? -1
}

/** The values of a node's widgets that no link sets, by name. */
export function valuesOf(node) {
  const own = node.widgets?.filter((widget) => !isLinked(node, widget.name) && typeof widget.value !== 'object') ?? []
  return Object.fromEntries(own.map((widget) => [widget.name, widget.value]))
}
