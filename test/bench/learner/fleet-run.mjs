/**
 * One fleet under the learner, from its first proposal on: how fast it is beside what a search finds, proposal by proposal, and
 * whether quality was kept; then its workloads and its flash change.
 */
import { mean } from '../reproduce/statistics.mjs';
import { decodeWindow, drawMix, makeFleet, trueSpeed } from './device.mjs';
import { BUDGET, LearnerSide, ROUTING, within } from './learner-side.mjs';
import { seeded } from './random.mjs';

/** Of each device, between two proposals. */
const WINDOWS = 5;
const LAMBDA_STEP = 0.01;

/** Settings at each capacity whose true loss is within the budget, in the mean of the domains and in the worst; λ 0 always is. */
export class TruthTable {
  constructor(recording) {
    this.recording = recording;
    this.kept = new Map();
  }

  losses({ capacity, lambda, topJ }) {
    return lambda === 0 ? this.recording.domains.map(() => 0) : this.recording.domains.map((domain) => this.recording.truth(domain, capacity, lambda, topJ).loss);
  }

  keeps(setting) {
    const losses = this.losses(setting);
    return losses.reduce((sum, loss) => sum + loss, 0) / losses.length <= BUDGET.meanNats && Math.max(...losses) <= BUDGET.worstNats;
  }

  /** `allows` instead of the truth; only the truth's own answers are kept. */
  settings(capacity, allows = null) {
    const known = this.kept.get(capacity);
    if (known && !allows) return known;
    const all = [{ capacity, lambda: 0, topJ: 0 }];
    const most = this.recording.lambdas.at(-1);
    for (const topJ of this.recording.topJs) {
      for (let lambda = LAMBDA_STEP; lambda <= most + 1e-9; lambda += LAMBDA_STEP) all.push({ capacity, lambda: Math.round(lambda * 100) / 100, topJ });
    }
    const found = all.filter(allows ?? ((setting) => this.keeps(setting)));
    if (!allows) this.kept.set(capacity, found);
    return found;
  }
}

const capacityOf = (device, recording) => Math.min(device.capacity, recording.experts);

/** Whether the upper bounds of the learner's surface are within the budget. */
function allows(surface, shape, { capacity, lambda, topJ }) {
  const quality = surface.predict({ routing: ROUTING, lambda, topJ, capacities: shape.expertBytes.map(() => capacity) });
  return quality !== null && within(quality, BUDGET);
}

/** The fastest setting of a device within the budget and its own limits. */
function bestOf(device, recording, settings) {
  return Math.max(...settings.filter(({ lambda }) => lambda <= device.maxLambda).map((setting) => trueSpeed(device, recording, setting)));
}

/** The best that one setting for all can do: `capacityFor` gives each device's capacity; it has to keep the budget on every device. */
function bestSingle(fleet, recording, truths, capacityFor) {
  const capacities = [...new Set(fleet.map(capacityFor))];
  const byCapacity = (settings) => new Set(settings.map(({ lambda, topJ }) => `${lambda}|${topJ}`));
  const allowed = capacities.map((capacity) => byCapacity(truths.settings(capacity)));
  const common = truths.settings(capacities[0]).filter(({ lambda, topJ }) => allowed.every((set) => set.has(`${lambda}|${topJ}`)));
  return Math.max(...common.map(({ lambda, topJ }) => mean(fleet.map((device) =>
    trueSpeed(device, recording, { capacity: capacityFor(device), lambda: Math.min(lambda, device.maxLambda), topJ: lambda === 0 ? 0 : topJ })))));
}

/** `options`: seed, devices, lying (share of suspects), lyingClass (all of it, in place of a share), truthful (they do not lie), proposals, shiftProposals, expertBytes. */
export function runFleet(recording, truths, surface, shape, options) {
  const random = seeded(options.seed);
  const fleet = makeFleet(random, recording, { count: options.devices, lying: options.lying, lyingClass: options.lyingClass, truthful: options.truthful, expertBytes: options.expertBytes });
  const learner = new LearnerSide(surface, shape, fleet);
  const honest = fleet.filter(({ suspect }) => !suspect);
  let optima = new Map(fleet.map((device) => [device.id, bestOf(device, recording, truths.settings(capacityOf(device, recording)))]));
  let hours = 0;
  let kept = 0;
  let ownKept = 0;
  const speedOf = (device) => trueSpeed(device, recording, learner.setting(device.id));
  const ofOptimum = (devices) => mean(devices.map(speedOf)) / mean(devices.map(({ id }) => optima.get(id)));

  const proposal = () => {
    for (const device of fleet) {
      const setting = learner.setting(device.id);
      for (let i = 0; i < WINDOWS; i += 1) learner.hear(device.id, decodeWindow(device, recording, setting));
      if (device.suspect) continue;
      hours += 1;
      if (truths.keeps(setting)) kept += 1;
      const own = setting.lambda === 0 ? 0 : Object.entries(device.mix).reduce((sum, [domain, weight]) => sum + weight * recording.truth(domain, setting.capacity, setting.lambda, setting.topJ).loss, 0);
      if (own <= BUDGET.worstNats) ownKept += 1;
    }
    learner.propose();
    return ofOptimum(honest);
  };

  // What keeps it from the optimum: the fastest setting that the learner's own surface lets it have, told each device's true speed.
  const sure = new Map([...new Set(fleet.map((device) => capacityOf(device, recording)))].map((capacity) => [capacity, truths.settings(capacity, (setting) => setting.lambda === 0 || allows(surface, shape, setting))]));
  const ofSure = () => mean(honest.map((device) => bestOf(device, recording, sure.get(capacityOf(device, recording))))) / mean(honest.map(({ id }) => optima.get(id)));

  const plain = ofOptimum(honest);
  const course = Array.from({ length: options.proposals }, proposal);
  const sureShare = ofSure();
  const speed = mean(honest.map(speedOf));
  const byClass = Object.fromEntries([...new Set(honest.map((device) => device.class))].sort().map((name) => [name, ofOptimum(honest.filter((device) => device.class === name))]));
  const smallest = Math.min(...fleet.map((device) => capacityOf(device, recording)));
  const single = bestSingle(honest, recording, truths, () => smallest);
  const lambdaOnly = bestSingle(honest, recording, truths, (device) => capacityOf(device, recording));

  // Every device gets other work, and a third of them a slower flash.
  for (const device of fleet) {
    device.mix = drawMix(random, recording.domains);
    if (random() < 1 / 3) device.speed /= 2;
  }
  optima = new Map(fleet.map((device) => [device.id, bestOf(device, recording, truths.settings(capacityOf(device, recording)))]));
  const shifted = ofOptimum(honest);
  const after = Array.from({ length: options.shiftProposals }, proposal);
  const quarantined = (devices) => devices.filter(({ id }) => learner.quarantined(id)).length;
  return {
    plain, sure: sureShare, course, meanOfOptimum: course.at(-1), byClass, overBestSingle: speed / single - 1, overLambdaOnly: speed / lambdaOnly - 1, budgetKept: kept / hours, ownMixKept: ownKept / hours,
    shifted, afterShift: after.at(-1), afterCourse: after, liars: fleet.length - honest.length, liarsQuarantined: quarantined(fleet.filter(({ suspect }) => suspect)), honestQuarantined: quarantined(honest),
  };
}
