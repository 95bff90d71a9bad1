/**
 * Which device belongs to which stage: a pure function of what is changed and the devices, so that the rollout does
 * what its plan has shown. Devices that are online come first, as they tell most about a change; among those, classes
 * take turns, so that a stage of few devices sees each kind of device; within a class a hash draws.
 */
import { createHash } from 'node:crypto';
import { InvalidRequestError } from '../errors';

export interface StageBound { readonly asked: string; /** devices in this stage and those before */ readonly devices: number }

export interface StageCandidate { readonly deviceId: string; readonly online: boolean; /** the label that tells kinds of device apart */ readonly class: string }

/** More devices than this are changed in stages unless the operator says otherwise. */
export const MOST_AT_ONCE = 10;
const DEFAULT_STAGES = '1,5%,25%,100%';
const MOST_STAGES = 50;

/** Empty `text`: the default for that many devices. Stages that would add no device are left out. Throws InvalidRequestError. */
export function planStages(text: string, devices: number): StageBound[] {
  const asked = (text || (devices > MOST_AT_ONCE ? DEFAULT_STAGES : '100%')).split(',').map((part) => part.trim());
  if (asked.length > MOST_STAGES) throw new InvalidRequestError('staging.stages', `${asked.length} stages`, `at most ${MOST_STAGES}`);
  const bounds = asked.map((part) => ({ asked: part, devices: Math.min(devices, boundOf(text, part, devices)) }));
  if (bounds.some((bound, at) => at > 0 && bound.devices < bounds[at - 1]!.devices)) throw new InvalidRequestError('staging.stages', text, 'a list in which each stage holds all before it, such as 1,5%,25%,100%');
  if (bounds.at(-1)!.devices < devices) throw new InvalidRequestError('staging.stages', text, 'a list that ends with 100%');
  return bounds.filter((bound, at) => bound.devices > (bounds[at - 1]?.devices ?? 0));
}

function boundOf(text: string, part: string, devices: number): number {
  const share = /^(\d{1,3}(?:\.\d{1,6})?)%$/.exec(part);
  if (share && Number(share[1]) > 0 && Number(share[1]) <= 100) return Math.ceil(Number(share[1]) * devices / 100 - 1e-9);
  if (/^[1-9]\d{0,8}$/.test(part)) return Number(part);
  throw new InvalidRequestError('staging.stages', part, `a number of devices or a share in percent, as in 1,5%,25%,100% (of "${text}")`);
}

/** Device ids in the order in which they get the change. */
export function orderDevices(seed: string, candidates: readonly StageCandidate[]): string[] {
  return [true, false].flatMap((online) => taking(seed, candidates.filter((candidate) => candidate.online === online)));
}

/** Stage of the device at `position` (from 0), from 1. */
export function stageAt(bounds: readonly StageBound[], position: number): number {
  return bounds.findIndex((bound) => position < bound.devices) + 1;
}

function taking(seed: string, candidates: readonly StageCandidate[]): string[] {
  const draw = (text: string) => createHash('sha256').update(`${seed}\0${text}`).digest('hex');
  const classes = new Map<string, { deviceId: string; drawn: string }[]>();
  for (const candidate of candidates) {
    const members = classes.get(candidate.class) ?? [];
    members.push({ deviceId: candidate.deviceId, drawn: draw(candidate.deviceId) });
    classes.set(candidate.class, members);
  }
  const turns = [...classes].map(([name, members]) => ({ drawn: draw(`class ${name}`), members: members.sort(byDraw) })).sort(byDraw);
  const order: string[] = [];
  for (let round = 0; order.length < candidates.length; round += 1) {
    for (const { members } of turns) if (members[round]) order.push(members[round]!.deviceId);
  }
  return order;
}

function byDraw(a: { drawn: string }, b: { drawn: string }): number {
  return a.drawn < b.drawn ? -1 : a.drawn > b.drawn ? 1 : 0;
}
