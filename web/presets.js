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

/** Queue a node's preset as custom: its values are in the widgets. The server takes its table for a preset, and it cannot tell
 * a value that the page puts in from outside from one of the node's own. A preset from outside is queued as it is. */
export function queueAsWritten(node) {
  const preset = widgetOf(node, PRESET)
  if (preset) preset.serializeValue = () => (isLinked(node, PRESET) ? preset.value : CUSTOM)
}

/** What a preset does that is set from outside: {preset, names} of it and of the `settings` (by name) that it replaces; without
 * `preset` where it is not known before the run, with the names of all that one may replace. Null where it replaces nothing. */
export function fromOutside(node, settings) {
  if (!isLinked(node, PRESET)) return null
  const tables = tablesOf(node)
  const { [PRESET]: preset } = settings
  if (preset === undefined) return { names: Object.values(tables).flatMap(Object.keys) }
  const other = Object.entries(tables[preset] ?? {}).filter(([name, value]) => name in settings && !same(settings[name], value))
  return other.length ? { preset, names: other.map(([name]) => name) } : null
}

/** The tables of a node's presets, by name. */
function tablesOf(node) {
  return node.constructor.nodeData?.input?.optional?.[PRESET]?.[1]?.[TABLES] ?? {}
}

/** [widget, value] of all that a node's own preset says. */
function wanted(node) {
  const preset = widgetOf(node, PRESET)
  const table = isLinked(node, PRESET) ? {} : (tablesOf(node)[preset?.value] ?? {})
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
