// Which runs the open workflow shows: those that it queued itself, in this tab. Shipped workflows share their id, so a run is
// known by its prompt: the workflow in front when that was queued is its owner.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { root } from './graph.js'

const QUEUED = '/srdiffusion/queued' // as nodes/live.py
const KEPT = 256
const owners = new Map() // prompt id -> {load, workflow} of this tab
const SETTLING = 1000 // milliseconds
const LATEST = 30_000 // milliseconds: until then a busy page may still open another workflow
let starting = true // the page has not opened its first workflow yet
let settled = null // the id of the graph of which it is known that it is the open workflow's
let loads = 0 // of graphs: between two of them the open workflow stays the same, though the page may tell late which it is
let queued = -1 // the load in which the open workflow queued last
let asking = Promise.resolve() // one question after the other: the first has no prompts of the second

function openWorkflow() {
  return app.extensionManager.workflow?.activeWorkflow ?? null
}

/** Note that the open workflow queued this prompt, or the one that was open in a load before. */
export function own(prompt, owner = { load: loads, workflow: null }) {
  owners.set(prompt, owner)
  if (owners.size > KEPT) owners.delete(owners.keys().next().value)
}

/** Whether the open workflow queued this prompt, as far as is known. */
export function isOwn(prompt) {
  const owner = owners.get(prompt)
  return owner !== undefined && (owner.load === loads || owner.workflow === openWorkflow())
}

/** The open workflow is about to queue a prompt. */
export function ownNext() {
  queued = loads
}

/** A prompt of this tab begins. One that comes wholly from the cache is over before `ownQueued` can learn of it. */
export function ownBegun(prompt) {
  if (queued === loads && !owners.has(prompt)) own(prompt)
}

/** Note which prompts the open workflow has just queued, also where another is open when the server tells them. */
export function ownQueued() {
  const owner = { load: loads, workflow: openWorkflow() }
  asking = asking.then(async () => {
    const answer = await api.fetchApi(`${QUEUED}?client_id=${client()}`).catch(() => null)
    const { prompts } = answer?.ok ? await answer.json() : { prompts: [] }
    for (const prompt of prompts) if (!owners.has(prompt)) own(prompt, owner)
  })
}

/**
 * Whether the open workflow shows a run. One of this tab that has no owner gets the open workflow: as long as the server
 * tells of it (`live`), and when the page starts, then also those of tabs that have been closed.
 */
export function belongs(run, live) {
  if (run.workflow_id !== String(root()?.id)) return false
  if (owners.has(run.prompt_id)) return isOwn(run.prompt_id)
  if (settled !== run.workflow_id || (run.client_id !== client() && !run.left)) return false
  if (!starting && !live && run.report.status !== 'running') return false
  own(run.prompt_id)
  return true
}

/**
 * A graph has been loaded: call act() when the page has made its workflow the open one, which comes after it tells extensions.
 * Loaded into the same workflow (undo), nothing changes. Where a busy page takes more than a second, act() is called again then.
 */
export function whenOpen(act) {
  const [before, begun] = [openWorkflow(), performance.now()]
  for (const owner of owners.values()) if (owner.load === loads) owner.workflow = before
  const load = ++loads
  settled = null
  const look = () => {
    if (load !== loads) return
    const [late, opened] = [performance.now() - begun, openWorkflow() !== before]
    if (!opened && late < LATEST) setTimeout(look, late < SETTLING ? 20 : 200)
    if (!opened && (late < SETTLING || settled)) return
    settled = String(root()?.id)
    act()
    starting = false
  }
  look()
}

function client() {
  return api.clientId ?? api.initialClientId ?? ''
}
