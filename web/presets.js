// The presets of a node: names for tables of widget values, which come with the node's definition (nodes/presets.py).

import { isLinked } from './graph.js'

const PRESET = 'preset'
const CUSTOM = 'custom'
const TABLES = 'srdiffusion_presets' // as nodes/presets.py, in the options of the preset's input

/** The user chose a preset: write its values into the widgets that no link sets. */
export function write(node) {
  const changed = wanted(node).filter(([widget, value]) => !same(widget.value, value))
  for (const [widget, value] of changed) widget.value = value // all of them before anybody looks
  for (const [widget, value] of changed) widget.callback?.(value)
}

/** A node whose widgets are not what its preset says has a custom one. */
export function keepTrue(node) {
  const preset = widgetOf(node, PRESET)
  if (preset && wanted(node).some(([widget, value]) => !same(widget.value, value))) preset.value = CUSTOM
}

/** [widget, value] of all that a node's preset says. */
function wanted(node) {
  const preset = widgetOf(node, PRESET)
  const { optional = {} } = node.constructor.nodeData?.input ?? {}
  const table = isLinked(node, PRESET) ? {} : (optional[PRESET]?.[1]?.[TABLES]?.[preset?.value] ?? {})
  const own = Object.entries(table).map(([name, value]) => [widgetOf(node, name), value])
  return own.filter(([widget]) => widget && !isLinked(node, widget.name))
}

/** Whether a widget has this value; numbers may be rounded. */
function same(value, wished) {
  return typeof wished === 'number' ? Math.abs(value - wished) < 1e-6 : value === wished
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)
}
