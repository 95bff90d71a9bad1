/** How a change reaches its targets: the flags of staged rollouts, and what they make of a change. */
import { type Command, Option } from 'commander';
import { type ChangeConfigRequest, Staging, type StagedRollout } from '@moefleet/proto';
import { integerFrom, numberFrom } from '../argument';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText, toJson } from '../json-text';
import type { Run } from '../operator-command';
import { isHeld, planText, progressText, stagedExitCode, stagedJson, stagedText } from '../staged-rollout-view';

const FLAGS = ['stages', 'soak', 'gate', 'maxUnavailable', 'deadline', 'plan', 'detach'] as const;
const MOST_SECONDS = 7 * 86_400;

export const STAGING_HELP = `
Stages: with any of --stages, --soak, --gate, --max-unavailable, --deadline or --plan, and by default where more than ten
devices are targeted, the change becomes a rollout: each stage gets it, soaks, and must pass its gates. Quality
(perplexityLoss, crossEntropyLoss) is measured on the devices, at the new value and at λ 0; the upper 95% bound decides. A
gate that fails takes the change back from every device; one that stays unclear holds it. Ctrl-C leaves it running:
see \`moefleet rollout\`.
`;

export function addStagingOptions(command: Command): Command {
  return command
    .option('--stages <list>', 'cumulative numbers or shares of the devices, such as 1,5%,25%,100%')
    .addOption(new Option('--soak <time>', 'how long each stage is watched before the next, such as 60s or 10m').argParser(durationMs))
    .option('--gate <list>', 'what must hold, such as perplexityLoss<1%,missRate<=baseline,errors==0')
    .addOption(new Option('--max-unavailable <n>', 'devices that may be on the way or have failed at once').argParser(integerFrom(1)))
    .addOption(new Option('--deadline <time>', 'how long a stage waits for devices that are offline (default: 10m)').argParser(durationMs))
    .option('--plan', 'show who would change and how, and change nothing')
    .option('--detach', 'return once the rollout has been started')
    .option('--now', 'all devices at once, however many');
}

/** `60s`, `10m`, `2h`, `500ms`; a bare number is seconds. */
export function durationMs(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text.trim()) ?? [];
  const factor = { ms: 0.001, s: 1, m: 60, h: 3600 }[unit ?? 's']!;
  return Math.round(1000 * numberFrom(0, MOST_SECONDS)(String(number === undefined ? text : Number(number) * factor)));
}

/** null: the change is asked for without any of the flags. Throws UsageFailure for flags that exclude each other. */
export function readStaging(options: Record<string, unknown>): Staging | null {
  const given = FLAGS.filter((flag) => options[flag] !== undefined);
  if (given.length === 0) return null;
  if (options['now']) throw new UsageFailure(`--now and --${given[0]!.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)} exclude each other; give one of them`);
  return Staging.fromPartial({
    stages: options['stages'] as string | undefined, soakMs: options['soak'] as number | undefined, gate: options['gate'] as string | undefined,
    maxUnavailable: options['maxUnavailable'] as number | undefined, deadlineMs: options['deadline'] as number | undefined,
  });
}

export async function applyStaged(context: Context, run: Run, change: ChangeConfigRequest, staging: Staging): Promise<void> {
  if (run.options['plan']) {
    const plan = await run.operator.planRollout({ change, staging });
    return run.out(run.json ? jsonText(toJson(plan)) : planText(plan));
  }
  const started = await run.operator.startRollout({ change, staging });
  if (run.options['detach']) return run.out(run.json ? jsonText({ rollout: stagedJson(started) }) : stagedText(started));
  run.note(`rollout ${started.id}: ${started.what}; Ctrl-C leaves it running\n`);
  await followStaged(context, run, started.id);
}

/** Until it has ended or is held. */
export async function followStaged(context: Context, run: Run, id: string): Promise<void> {
  let told = '';
  const last = await run.operator.watchRollout(id, (rollout: StagedRollout) => {
    const text = progressText(rollout);
    if (text !== told) run.note(`${text}\n`);
    told = text;
    return !isHeld(rollout);
  });
  run.out(run.json ? jsonText({ rollout: stagedJson(last) }) : stagedText(last));
  context.setExitCode(stagedExitCode(last));
}
