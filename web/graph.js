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
  return slot >= 0 ? nodeInto(node, slot) : null
}

/** The node that comes into a slot, null where none does, or the subgraph's own input. Not by the node's getInputNode: a
 * subgraph's node looks among the links of its outputs. */
export function nodeInto(node, slot) {
  return node.graph?.getNodeById(linkInto(node, slot)?.origin_id) ?? null
}

function linkInto(node, slot) {
  return node.graph?.getLink(node.inputs[slot]?.link)
}

function slotOf(node, name) {
  return node?.inputs?.findIndex((input) => input.name === name) ?? -1
}

/** The values of a node's widgets by name, as they will be queued; without those that another node gives in the run. */
export function valuesOf(node) {
  const values = node.widgets?.map(({ name, value }) => [name, isLinked(node, name) ? given(node, slotOf(node, name)) : value]) ?? []
  return Object.fromEntries(values.filter(([, value]) => value !== undefined && typeof value !== 'object'))
}

/** The value that the page itself puts into an input that is linked: of a PrimitiveNode, or of the node of the subgraph
 * around. Undefined where another node gives it in the run, or where several nodes of the subgraph have other values. */
function given(node, slot) {
  const source = nodeInto(node, slot)
  if (source) return source.type === 'PrimitiveNode' ? source.widgets?.[0]?.value : undefined
  const place = linkInto(node, slot)?.origin_slot
  const values = [...nodesOf(root())].filter(([, around]) => around.subgraph === node.graph).map(([, around]) => outer(around, place))
  return values.every((value) => value === values[0]) ? values[0] : undefined
}

/** The value that a subgraph's node has for its input. */
function outer(node, slot) {
  if (node.isInputConnected(slot)) return nodeInto(node, slot) ? undefined : given(node, slot)
  const input = node.inputs[slot]
  return (node.getWidgetFromSlot?.(input) ?? node.widgets?.find((widget) => widget.name === input?.name))?.value
}
