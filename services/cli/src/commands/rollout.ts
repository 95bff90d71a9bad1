/** `moefleet rollout`: changes that reach the fleet in stages, and what an operator may do about them. */
import type { Command } from 'commander';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { addOperatorGroup } from '../operator-command';
import { stagedJson, stagedListText, stagedText } from '../staged-rollout-view';
import { followStaged } from './staging';

const ORDERS = [
  ['pause', 'hold it where it is: devices that have the change keep it, no others get it'],
  ['resume', 'go on from where it was paused; one that is INCONCLUSIVE measures its stage again'],
  ['rollback', 'take the change back from every device that has it, also when the rollout is DONE'],
] as const;

export function addRollout(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'rollout', 'changes that reach the fleet in stages', (rollout, action) => {
    addCommonOptions(rollout.command('list', { isDefault: true }).description('the latest, newest first (the default)'), { operator: true })
      .addHelpText('after', '\nExample:\n  moefleet rollout list --json\n')
      .action(action(async ({ operator, json, out }) => {
        const found = await operator.listRollouts();
        out(json ? jsonText({ rollouts: found.map(stagedJson) }) : stagedListText(found));
      }));
    addCommonOptions(rollout.command('show').description('its state, each device, and what each gate has found').argument('<id>', 'rollout id'), { operator: true })
      .addHelpText('after', '\nExample:\n  moefleet rollout show ro-mwwm6fn0-c794ad63\n')
      .action(action(async ({ operator, json, out, args }) => {
        const found = await operator.getRollout(args[0]!);
        out(json ? jsonText({ rollout: stagedJson(found) }) : stagedText(found));
      }));
    addCommonOptions(rollout.command('watch').description('follow it until it has ended or is held').argument('<id>', 'rollout id'), { operator: true })
      .addHelpText('after', '\nExit code 0: DONE; 3: DONE but for offline devices; 1: it has ended otherwise or is held.\n\nExample:\n  moefleet rollout watch ro-mwwm6fn0-c794ad63\n')
      .action(action((run) => followStaged(context, run, run.args[0]!)));
    for (const [order, description] of ORDERS) {
      addCommonOptions(rollout.command(order).description(description).argument('<id>', 'rollout id').option('--why <text>', 'reason, kept with it'), { operator: true })
        .addHelpText('after', `\nExample:\n  moefleet rollout ${order} ro-mwwm6fn0-c794ad63 --why "answers look wrong"\n`)
        .action(action(async ({ operator, json, out, args, options }) => {
          const found = await operator.orderRollout(order, args[0]!, String(options['why'] ?? ''));
          out(json ? jsonText({ rollout: stagedJson(found) }) : stagedText(found));
        }));
    }
  });
}
