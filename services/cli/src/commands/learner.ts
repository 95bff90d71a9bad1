/** `moefleet learner show` and `now`. (`learner run` is a program: see run-program.ts.) */
import type { Command } from 'commander';
import { type GetLearnerResponse, type Proposal, Routing } from '@moefleet/proto';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { routingName } from '../device-view';
import { operatorAction } from '../operator-command';
import { capacityText, NONE, percent, table } from '../table';
import { ago } from './devices';

export function addLearnerQueries(learner: Command, context: Context): void {
  const action = operatorAction(context);
  addCommonOptions(learner.command('show').description('what the learner proposes for each device and why, and what it does now'), { operator: true })
    .addHelpText('after', '\nOne device in full, with the figures: moefleet learner explain DEVICE\n\nExample:\n  moefleet learner show --json\n')
    .action(action(async ({ operator, json, out }) => {
      const learner = await operator.getLearner();
      out(json ? jsonText({ activity: learner.activity, proposals: byDevice(learner).map((one) => ({ ...one, routing: routingName(one.routing) })) }) : learnerText(learner, Date.now()));
    }));
  addCommonOptions(learner.command('now').description('queue a run of the learner now, instead of at its next tick'), { operator: true })
    .addHelpText('after', '\nExample:\n  moefleet learner now\n')
    .action(action(async ({ operator, json, out }) => {
      const jobId = await operator.runLearner();
      out(json ? jsonText({ jobId }) : `queued as ${jobId}; watch it with: moefleet learner show\n`);
    }));
}

function byDevice({ proposals }: GetLearnerResponse) {
  return [...proposals].sort((a, b) => (a.deviceId < b.deviceId ? -1 : a.deviceId > b.deviceId ? 1 : 0));
}

function learnerText(learner: GetLearnerResponse, nowMs: number): string {
  const activity = `now: ${learner.activity || 'idle'}\n`;
  if (learner.proposals.length === 0) return `${activity}no proposals yet; start a learner with \`moefleet learner run\`, or queue a run with \`moefleet learner now\`\n`;
  return `${activity}\n${table(['DEVICE', 'BENT BY', 'TOP J', 'CAPACITY', 'MISS AT λ 0', 'MISS', 'PERPLEXITY LOSS', 'WHEN', 'WHY'], byDevice(learner).map((one) => [
    one.deviceId,
    one.proposed ? bendText(one) : NONE,
    one.proposed ? String(one.topJ) : NONE,
    one.proposed ? capacityText(one.capacities) : NONE,
    one.proposed ? percent(one.baselineMissRate) : NONE,
    one.proposed ? percent(one.predictedMissRate) : NONE,
    one.proposed ? percent(Math.expm1(one.predictedCrossEntropyLoss), 2) : NONE,
    ago(nowMs - Number(one.timeMs)),
    one.reason,
  ]), [1, 2, 3, 4, 5, 6])}`;
}

function bendText({ routing, lambda, maxRank, massThreshold }: Proposal): string {
  const plain = routing === Routing.ROUTING_UNSPECIFIED || routing === Routing.ROUTING_CACHE_PRIOR;
  return plain ? `λ ${lambda}` : [routingName(routing), maxRank ?? massThreshold].filter((part) => part !== undefined).join(' ');
}
