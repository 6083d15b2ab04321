// What the pack adds to the page: the live chart on Switch Inspector and SR Sampler, filled by the server's messages about each
// run; and nodes with a switch_mode show what matters in it, with a line that says what it means.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { isLinked, nodeAt, nodesOf, root } from './graph.js'
import { arrange, hasModes } from './modes.js'
import { Plan } from './plan.js'
import { keepTrue, queueAsWritten, write } from './presets.js'
import { forgetUnended, isOver, known, take } from './runs.js'
import { belongs, isOwn, own, ownBegun, ownNext, ownQueued, whenOpen } from './tab.js'
import { View } from './view.js'
import { learn, say } from './words.js'

const EVENT = 'srdiffusion.run' // as nodes/live.py
const ROUTE = '/srdiffusion/runs'
const READ = '/srdiffusion/read'
const SAVED = 'srdiffusion' // in the `extra` of a workflow that was saved with a video
const MARGIN = 5 // around the chart
const views = new WeakMap() // node -> View
const plans = new WeakMap() // node -> Plan
const widgets = new WeakMap() // element -> its widget
let opened = 0 // saved reports
let ready = false // the page has its graph

// Before anything else: the page reports a message that nobody listens to as an error, and a run may be under way.
api.addEventListener(EVENT, ({ detail }) => {
  const run = take(detail)
  if (run) show(run, true)
  else if (ready) catchUp()
})

app.registerExtension({
  name: 'srdiffusion.switch_inspector',

  async init() {
    const answer = await api.fetchApi('/i18n')
    if (answer.ok) learn((await answer.json())[app.extensionManager.setting.get('Comfy.Locale')]?.srdiffusion)
  },

  async setup() {
    const style = document.createElement('link')
    style.rel = 'stylesheet'
    style.href = new URL('./switch_inspector.css', import.meta.url).href
    document.head.append(style)
    api.addEventListener('reconnected', catchUp)
    api.addEventListener('reconnected', refreshSettings)
    api.addEventListener('promptQueued', ownQueued)
    api.addEventListener('execution_start', ({ detail }) => ofPrompt(detail, (view) => view.reset(detail.prompt_id)))
    api.addEventListener('execution_error', ({ detail }) => ofPrompt(detail, (view) => view.reset(detail.prompt_id)))
    api.addEventListener('execution_cached', ({ detail }) => ofPrompt(detail, (view, id) => detail.nodes.includes(id) && view.restore()))
    api.addEventListener('graphChanged', refreshSettings)
    ready = true
    await catchUp()
  },

  nodeCreated(node) {
    if (hasModes(node)) attachSettings(node)
    if (node.comfyClass === 'SRSwitchInspector') attach(node, false)
    if (node.comfyClass === 'SRSampler') attach(node, true)
  },

  afterConfigureGraph() {
    refreshSettings()
    requestAnimationFrame(() => requestAnimationFrame(putOnScreen)) // once the page has drawn the new nodes
    let saved = takeSaved()
    if (!saved) showKnown()
    whenOpen(() => {
      showKnown()
      if (saved) showSaved(saved)
      saved = null
    })
  }
})

/** A node with a switch_mode: its widgets and its line follow the mode, and the preset where it has one. */
function attachSettings(node) {
  let grown = 0 // by what the line has made the node higher
  const plan = new Plan(node, (more) => {
    const before = node.size[1]
    makeRoom(node, Math.max(Math.min(more, 0), -grown)) // room that was there without the line stays
    grown += node.size[1] - before
  })
  saveWithout(node, () => grown)
  plans.set(node, plan)
  widgets.set(plan.element, plan.widget)
  queueAsWritten(node)
  for (const widget of node.widgets) {
    follow(widget, 'callback', () => {
      if (widget.name === 'preset') write(node)
      refresh(node, true)
    })
  }
  follow(node, 'onConfigure', () => arrange(node)) // before the page makes it as high as its widgets need
  follow(node, 'onConnectionsChange', () => setTimeout(() => refresh(node))) // some pages tell of a link before they have it
  refresh(node)
}

/** Save and copy a node without so many pixels of its height: what takes them is not saved and comes anew. */
function saveWithout(node, pixels) {
  follow(node, 'onSerialize', (saved) => (saved.size = [saved.size[0], saved.size[1] - pixels()]))
}

/** Call act() with the parameters of a method of something, after it. */
function follow(object, name, act) {
  const before = object[name]
  object[name] = function (...parameters) {
    const result = before?.apply(this, parameters)
    act(...parameters)
    return result
  }
}

/** Every node with a switch_mode shows what its settings mean. */
function refreshSettings() {
  for (const [, node] of nodesOf(root())) refresh(node)
}

/** `byUser`: the user changed a widget, so the node gets the height that it now needs. */
function refresh(node, byUser = false) {
  if (!plans.has(node)) return
  keepTrue(node)
  const before = node.computeSize()[1]
  if (arrange(node)) makeRoom(node, byUser ? node.computeSize()[1] - before : 0)
  if (node.graph) plans.get(node).refresh()
}

/** Make a node so much higher, and no less high than its widgets need. One that is gone (undo) has another under its id, whose
 * size Nodes 2.0 would take this one's for. */
function makeRoom(node, more = 0) {
  if (node.graph && node.graph.getNodeById(node.id) !== node) return
  node.setSize([node.size[0], Math.max(node.size[1] + more, node.computeSize()[1])])
  node.setDirtyCanvas?.(true, true)
}

function attach(node, collapsible) {
  const view = new View({
    collapsible,
    deltaOf: (run) => deltaWidget(nodeAt(run.sampler)),
    resized: (more) => makeRoom(node, more), // what the user had made larger stays larger by as much
    changed: () => app.graph.setDirtyCanvas(true, true)
  })
  const widget = node.addDOMWidget('srd_chart', 'srd_chart', view.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin: MARGIN,
    getMinHeight: () => view.minHeight(),
    getMaxHeight: () => (collapsible ? view.minHeight() : undefined),
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false // no part of the saved workflow
  widget.beforeQueued = () => {
    ownNext()
    view.reset()
  }
  views.set(node, view)
  widgets.set(view.element, widget)
  if (collapsible) saveWithout(node, () => view.unfolded())
  const [width, height] = collapsible ? [310, 0] : [480, 560] // of a new node
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
}

/** Nodes 2.0 keeps the elements of the nodes before where the new ones have their ids (undo): put the new ones' there. */
function putOnScreen() {
  const nodes = new Set([...nodesOf(root())].map(([, node]) => node))
  for (const shown of document.querySelectorAll('.srd-plan, .srd-chart')) {
    const { node, name } = widgets.get(shown)
    if (nodes.has(node)) continue
    const now = app.canvas.graph?.getNodeById(node.id)?.widgets?.find((widget) => widget.name === name)?.element
    if (now && !now.isConnected) shown.replaceWith(now)
  }
}

/** Ask the server for the runs that it knows. */
async function catchUp() {
  const answer = await api.fetchApi(ROUTE)
  if (!answer.ok) return
  const { runs } = await answer.json()
  forgetUnended(runs)
  // A run that ended while this answer was on its way stays ended.
  runs.filter((run) => run.report.status !== 'running' || !isOver(run)).forEach(take)
  showKnown()
}

/** Show a run on the nodes that it belongs to, if its workflow is the open one. */
function show(run, live = false) {
  if (!ready || !belongs(run, live)) return
  for (const id of run.nodes) views.get(nodeAt(id))?.show(run)
}

/** Show on every chart the newest run that is its own, and no other. */
function showKnown() {
  if (!ready) return
  const runs = known().filter((run) => belongs(run))
  for (const [id, node] of nodesOf(root())) {
    const view = views.get(node)
    const newest = runs.findLast((run) => run.nodes.includes(id))
    if (newest) view?.show(newest)
    else if (view?.run && !belongs(view.run)) view.show(null)
  }
}

/** Call act(view, id) for every chart of the open workflow, if that queued the prompt of a message. */
function ofPrompt({ prompt_id }, act) {
  ownBegun(prompt_id)
  if (isOwn(prompt_id)) for (const [id, node] of nodesOf(root())) if (views.has(node)) act(views.get(node), id)
}

/** The delta widget of a node, null where there is none or a link sets it. */
function deltaWidget(node) {
  return isLinked(node, 'delta') ? null : (node?.widgets?.find((widget) => widget.name === 'delta') ?? null)
}

/** Reports that came with the workflow of a saved video, null where there are none: taken out of the workflow. */
function takeSaved() {
  const saved = root()?.extra?.[SAVED]
  if (!saved || typeof saved !== 'object') return null
  delete root().extra[SAVED]
  return saved
}

async function showSaved(saved) {
  const prompt = `saved ${++opened}`
  const workflow = String(root().id)
  own(prompt)
  const { output } = await app.graphToPrompt()
  for (const [key, text] of Object.entries(saved)) {
    const [id, samples = ''] = key.split(' ') // as nodes/live.py stores it: the node of the report, another that sampled
    const inspectors = Object.keys(output).filter((node) => shows(output, node, id, samples))
    const run = { prompt_id: prompt, node_id: id, samples, sampler: id, workflow_id: workflow, nodes: [id, ...inspectors] }
    show(take({ ...run, ...(await read(text)) }))
  }
}

/** What the server says of a saved report, of whatever version: {report, figures}. */
async function read(report) {
  const answer = await api.fetchApi(READ, { method: 'POST', body: JSON.stringify(report) })
  if (answer.ok) return await answer.json()
  return { report: { status: 'unreadable', error: say('The server could not read the report that was saved with this workflow.') }, figures: {} }
}

/** Whether a node of a prompt is an Inspector that shows the report of node `id` for the run that node `samples` sampled. */
function shows(prompt, node, id, samples) {
  const { report, after } = prompt[node].inputs
  if (report?.[0] !== id) return false
  const before = new Set()
  const ahead = [after]
  while (ahead.length) {
    const link = ahead.pop()
    if (!Array.isArray(link) || before.has(link[0])) continue
    before.add(link[0])
    ahead.push(...Object.values(prompt[link[0]]?.inputs ?? {}))
  }
  return !before.has(id) || !prompt[samples] || before.has(samples)
}
