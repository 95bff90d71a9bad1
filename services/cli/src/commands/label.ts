/** `moefleet label`: labels that operators put on devices, beside those devices report. */
import type { Command } from 'commander';
import type { ChangeLabelsRequest, ChangeLabelsResponse } from '@moefleet/proto';
import { isLabelKey, isLabelValue } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { addOperatorGroup, type Run } from '../operator-command';
import { labelsText, table } from '../table';
import { addTargetOptions, readTarget } from '../target';

const RULES = `
A device also reports labels of its own (agent run --labels). One set here wins over a reported one of the same key, and
keys under moefleet.io/ count only if set here. Groups (--selector) see the labels in force; a device whose groups
change is brought in line at once.
`;

export function addLabel(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'label', 'labels of devices, for selecting them', (label, action) => {
    const set = addTargetOptions(label.command('set').description('set labels').argument('[device]', 'device id, instead of --device').argument('[labels...]', 'key=value'))
      .option('--why <text>', 'reason, kept in the audit log')
      .addHelpText('after', `${RULES}
Examples:
  moefleet label set phone-1 site=berlin tier=prod
  moefleet label set --selector 'class=phone,region in (eu,us)' ring=canary
`);
    addCommonOptions(set, { operator: true }).action(action((run) => change(run, readLabels)));

    const remove = addTargetOptions(label.command('remove').description('remove labels set by operators; a reported one of the same key counts again').argument('[device]', 'device id, instead of --device').argument('[keys...]', 'label keys'))
      .option('--why <text>', 'reason, kept in the audit log')
      .addHelpText('after', `${RULES}
Examples:
  moefleet label remove phone-1 tier
  moefleet label remove --all ring
`);
    addCommonOptions(remove, { operator: true }).action(action((run) => change(run, readKeys)));
  });
}

async function change(run: Run, read: (words: readonly string[]) => Pick<ChangeLabelsRequest, 'set' | 'remove'>): Promise<void> {
  const { options } = run;
  const words = run.words;
  const byOption = ['all', 'device', 'selector'].some((name) => options[name] !== undefined);
  const target = readTarget(byOption ? options : { ...options, ...(words[0] === undefined ? {} : { device: words[0] }) });
  const answer = await run.operator.changeLabels({ target, ...read(byOption ? words : words.slice(1)), why: String(options['why'] ?? '') });
  run.out(run.json ? jsonText(answer) : answerText(answer));
}

function answerText({ devices, matched }: ChangeLabelsResponse): string {
  if (matched === 0) return 'no device matches\n';
  if (devices.length === 0) return `nothing to change on ${matched} device${matched === 1 ? '' : 's'}\n`;
  return table(['DEVICE', 'LABELS', 'OF THESE SET HERE'], devices.map((device) => [device.deviceId, labelsText(device.labels), labelsText(device.operatorLabels)]));
}

function readLabels(words: readonly string[]): Pick<ChangeLabelsRequest, 'set' | 'remove'> {
  const pairs = words.map((word): [string, string] => {
    const at = word.indexOf('=');
    const [key, value] = [word.slice(0, at), word.slice(at + 1)];
    if (at < 1 || !isLabelKey(key)) throw new UsageFailure(`"${word}" is no label; write it as site=berlin or site.example/room=4`);
    if (!isLabelValue(value)) throw new UsageFailure(`"${word}": a value has at most 63 letters, digits, ".", "_" and "-", a letter or digit first and last`);
    return [key, value];
  });
  if (pairs.length === 0) throw new UsageFailure('no label given; write it as site=berlin');
  return { set: Object.fromEntries(pairs), remove: [] };
}

function readKeys(words: readonly string[]): Pick<ChangeLabelsRequest, 'set' | 'remove'> {
  for (const word of words) {
    if (!isLabelKey(word)) throw new UsageFailure(`"${word}" is no label key; write it as site or site.example/room`);
  }
  if (words.length === 0) throw new UsageFailure('no label key given; see the labels of a device with: moefleet devices show ID');
  return { set: {}, remove: [...words] };
}
