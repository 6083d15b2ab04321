// The line that says what a node's settings mean, before the run: the server (nodes/plan.py) reckons, as it does in the run.

import { api } from '../../scripts/api.js'
import { isLinked, nodeInto, sourceOf, valuesOf } from './graph.js'
import { short } from './chart.js'
import { fromOutside } from './presets.js'
import { say } from './words.js'

const PLAN = '/srdiffusion/plan' // as nodes/plan.py
const FARTHEST = 32 // nodes between a loader and the sampler
const BYPASSED = 4 // the page's mode of a node
const REROUTE = 'Reroute'
const HEIGHT = 20 // of one line
const MARGIN = 4

export class Plan {
  /** resized(more): called when the line gets higher by `more`, which may be below 0. */
  constructor(node, resized) {
    Object.assign(this, { node, resized, asked: '', height: HEIGHT })
    this.text = Object.assign(document.createElement('span'), { role: 'status' })
    this.element = Object.assign(document.createElement('div'), { className: 'srd-plan' })
    this.element.append(this.text)
    new ResizeObserver(() => this.measure()).observe(this.text) // other words, or a node of another width
    this.widget = node.addDOMWidget('srd_plan', 'srd_plan', this.element, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true,
      margin: MARGIN,
      getMinHeight: () => this.height + 2 * MARGIN,
      getMaxHeight: () => this.height + 2 * MARGIN,
      getValue: () => '',
      setValue: () => {}
    })
    this.widget.serialize = false // no part of the saved workflow
  }

  /** Say what the present settings mean, if they are others than before. */
  async refresh() {
    const settings = valuesOf(this.node)
    const outside = fromOutside(this.node, settings)
    if (outside && !outside.preset) for (const name of outside.names) delete settings[name] // nobody knows them before the run
    const question = JSON.stringify({
      settings,
      models: modelsBefore(this.node, 'sketch'),
      render: modelsBefore(this.node, 'render'),
      own_prompts: isLinked(this.node, 'render_positive')
    })
    if (question === this.asked) return
    this.asked = question
    const answer = await api.fetchApi(PLAN, { method: 'POST', body: question }).catch(() => null)
    const plan = answer?.ok ? await answer.json() : null
    if (question !== this.asked) return
    if (!plan) this.asked = '' // the server is not there, or can't say: ask again
    this.show(plan ?? {}, outside)
  }

  show(plan, outside) {
    const meant = plan.problem ? [plan.problem] : [plan.note, wordsOf(plan)]
    this.text.textContent = [outside && replacedBy(outside), ...meant].filter(Boolean).join(' ')
    this.element.classList.toggle('srd-problem', Boolean(outside) || 'problem' in plan || 'note' in plan)
  }

  measure() {
    const { offsetHeight, textContent } = this.text
    const more = Math.max(HEIGHT, offsetHeight) - this.height
    if (!more || (textContent && !offsetHeight)) return // words without a height are out of view
    this.height += more
    this.resized(more)
  }
}

/** The nodes that a MODEL input comes through, the nearest first. Bypassed ones change nothing, nor does the page's Reroute,
 * whose one input has no name. */
function modelsBefore(node, name) {
  const found = []
  let at = sourceOf(node, name)
  while (at && found.length < FARTHEST) {
    const reroute = at.type === REROUTE
    if (at.mode !== BYPASSED && !reroute) found.push({ type: at.comfyClass ?? at.type, values: valuesOf(at) })
    at = reroute ? nodeInto(at, 0) : (sourceOf(at, 'model') ?? sourceOf(at, 'sketch'))
  }
  return found
}

/** What a preset that is set from outside does. */
function replacedBy({ preset, names }) {
  if (!preset) return say('The preset is set from outside: it replaces the widgets that it stands for.')
  return say('Preset {preset} is set from outside: it replaces {names}.', { preset, names: names.join(', ') })
}

function wordsOf({ mode, steps, earliest, latest, sigma, rest = steps - latest }) {
  const places = { steps, earliest, latest, sigma: sigma && short(sigma), rest }
  if (mode === 'adaptive' && latest === steps) return say('{steps} steps: switches at step {earliest} or later', places)
  if (mode === 'adaptive' && latest) return say('{steps} steps: earliest {earliest}, latest {latest} (sigma {sigma})', places)
  if (mode === 'adaptive' && latest === 0) return say('{steps} steps: the render runs all', places)
  if (mode === 'adaptive') return say('switches once the composition has settled')
  if (latest === undefined) return ''
  return say('{steps} steps: sketch {latest}, render {rest}', places)
}
