// Which widgets a node with a switch_mode shows: those that do something in the present mode. Hidden ones keep their values and
// places, so a saved workflow has all of them.

import { isLinked } from './graph.js'

const MODE = 'switch_mode'
const ADVANCED = { adaptive: ['max_step', 'switch_sigma'] } // by mode, behind "advanced" where the page has that
const SHOWN = {
  adaptive: ['delta', 'fix_step', 'max_step', 'switch_sigma'],
  step: ['switch_step'],
  sigma: ['switch_sigma']
}
const LIST = 'sketch_steps' // a list of steps stands in for the mode
const IN_A_MODE = new Set(Object.values(SHOWN).flat())

/** Whether the node has a switch_mode. */
export function hasModes(node) {
  return node.comfyClass?.startsWith('SR') && modeOf(node) !== undefined
}

function modeOf(node) {
  return node.widgets?.find((widget) => widget.name === MODE)
}

/** Hide what does nothing in the present mode, show the rest. Returns whether that changed anything. */
export function arrange(node) {
  const mode = isLinked(node, MODE) ? undefined : modeOf(node).value
  const listed = node.widgets.find((widget) => widget.name === LIST)?.value?.trim()
  const shown = listed ? [] : (SHOWN[mode] ?? [...IN_A_MODE])
  const changed = node.widgets
    .filter((widget) => IN_A_MODE.has(widget.name))
    .map((widget) => {
      const hidden = !shown.includes(widget.name) && !isLinked(node, widget.name)
      return set(widget, hidden, mode in ADVANCED && ADVANCED[mode].includes(widget.name))
    })
  if (!changed.includes(true)) return false
  node.widgets.push(node.widgets.pop()) // Nodes 2.0 looks at the list, not at its widgets
  return true
}

function set(widget, hidden, advanced) {
  if (Boolean(widget.options.hidden) === hidden && Boolean(widget.options.advanced) === advanced) return false
  widget.hidden = hidden
  widget.options.hidden = hidden
  widget.options.advanced = advanced // not widget.advanced: the classic renderer would hide it
  return true
}
