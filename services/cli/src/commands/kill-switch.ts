/** `moefleet lambda off` and `on`: the kill switch. */
import { type Command, Option } from 'commander';
import type { KillSwitch, Rollout } from '@moefleet/proto';
import { numberFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import type { Action, Run } from '../operator-command';
import { missingText, notApplied, rolloutExitCode, rolloutJson, rolloutText } from '../rollout-view';

export function addKillSwitch(lambda: Command, context: Context, action: Action): void {
  switching(context, action, 'off', lambda.command('off')
    .description('kill switch: every device back to its model\'s own routing at once, past all stages, until `moefleet lambda on`'), `
Running rollouts pause, the learner's proposals are refused, and devices that join get the model's own routing too.
Pins stay as they are, and count again after \`moefleet lambda on\`.

Example:
  moefleet lambda off --why "answers look wrong since noon"
`);
  switching(context, action, 'on', lambda.command('on')
    .description('release the kill switch: pins and the learner count again; rollouts it has paused stay paused'), `
Example:
  moefleet lambda on --why "it was the prompt"
`);
}

/** The line at the head of `moefleet devices`; empty where the switch is not held. */
export function killSwitchText(kill: KillSwitch | null): string {
  if (!kill?.off) return '';
  const since = new Date(Number(kill.sinceMs)).toISOString();
  return `KILL SWITCH: λ is off on every device since ${since}${kill.why ? `: ${kill.why}` : ''}; release it with: moefleet lambda on\n\n`;
}

function switching(context: Context, action: Action, to: 'off' | 'on', command: Command, help: string): void {
  command
    .option('--why <text>', 'reason, kept with the switch')
    .addOption(new Option('--timeout <seconds>', 'how long to wait for devices').argParser(numberFrom(0.1, 600)).default(30))
    .addHelpText('after', help);
  addCommonOptions(command, { operator: true }).action(action((run) => flip(context, run, to)));
}

async function flip(context: Context, run: Run, to: 'off' | 'on'): Promise<void> {
  const request = { why: String(run.options['why'] ?? ''), timeoutMs: Math.round(Number(run.options['timeout']) * 1000) };
  const startedMs = Date.now();
  let waitingFor = -1;
  const rollout = await run.operator.switchLambda(to, request, (state: Rollout) => {
    const waiting = notApplied(state).length;
    if (waiting > 0 && waiting !== waitingFor && Date.now() - startedMs > 2000) run.note(`waiting for ${waiting} of ${state.devices.length} devices\n`);
    waitingFor = waiting;
  });
  run.out(run.json ? jsonText(rolloutJson(rollout)) : rolloutText(rollout));
  run.note(missingText(rollout));
  context.setExitCode(rolloutExitCode(rollout));
}
