/** `moefleet token create`, `list` and `revoke`: what lets a device into the fleet. */
import { type Command, Option } from 'commander';
import type { EnrolmentToken } from '@moefleet/proto';
import { readLabels } from '@moefleet/runtime';
import { durationFrom, integerFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { addOperatorGroup } from '../operator-command';
import { NONE, pairs, table } from '../table';

const DAY_MS = 24 * 3_600_000;

export function addTokens(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'token', 'enrolment tokens, which let devices into the fleet', (tokens, action) => {
    const create = tokens.command('create')
      .description('make a token; its secret is printed once, the registry keeps a hash')
      .option('--labels <k=v,...>', 'labels that each device gets that enrols with it')
      .addOption(new Option('--uses <n>', 'devices that may enrol with it').argParser(integerFrom(1, 100_000)).default(1))
      .addOption(new Option('--ttl <span>', 'how long it is good for, such as 30m or 7d').argParser(durationFrom(1000, 365 * DAY_MS)).default(3_600_000, '1h'))
      .option('--why <text>', 'reason, kept with the token', '')
      .addHelpText('after', `
The token names the fleet's CA by its fingerprint, so that a device trusts the right coordinator at first contact.

Examples:
  moefleet token create --labels class=phone,region=eu --uses 50 --ttl 2h
  moefleet agent run --enrol-token "$(moefleet token create --json | jq -r .secret)" --model model.gguf
`);
    addCommonOptions(create, { operator: true }).action(action(async ({ operator, json, options, out }) => {
      const labels = readLabels('--labels', options['labels'] as string | undefined);
      const made = await operator.unary(operator.identity.createEnrolmentToken.bind(operator.identity),
        { labels, uses: Number(options['uses']), ttlMs: BigInt(Number(options['ttl'])), why: String(options['why']) });
      out(json ? jsonText(made) : `${made.secret}\n\n${tokenText(made.token!)}`);
    }));

    addCommonOptions(tokens.command('list', { isDefault: true }).description('tokens, newest first (the default)'), { operator: true })
      .addHelpText('after', '\nExample:\n  moefleet token list --json\n')
      .action(action(async ({ operator, json, out }) => {
        const { tokens: found } = await operator.unary(operator.identity.listEnrolmentTokens.bind(operator.identity), {});
        if (json) return out(jsonText({ tokens: found }));
        out(found.length === 0 ? 'no tokens; make one with: moefleet token create\n' : table(['ID', 'USED', 'STATE', 'UNTIL', 'LABELS', 'WHY'], found.map((token) => [
          token.id, `${token.used} of ${token.uses}`, stateOf(token, Date.now()), timeText(token.expiresMs), labelText(token), token.why || NONE,
        ])));
      }));

    const revoke = tokens.command('revoke')
      .description('let nobody in with it any more; devices that are in stay in')
      .argument('<id>', 'as `moefleet token list` tells it')
      .option('--why <text>', 'reason, told to whoever tries it', '')
      .addHelpText('after', '\nExample:\n  moefleet token revoke 3fd0c2a91b77 --why "was on a slide"\n');
    addCommonOptions(revoke, { operator: true }).action(action(async ({ operator, json, args, options, out }) => {
      const { token } = await operator.unary(operator.identity.revokeEnrolmentToken.bind(operator.identity), { id: args[0]!, why: String(options['why']) });
      out(json ? jsonText({ token }) : tokenText(token!));
    }));
  });
}

function tokenText(token: EnrolmentToken): string {
  return pairs([
    ['id', token.id], ['state', stateOf(token, Date.now())], ['used', `${token.used} of ${token.uses} devices`], ['until', timeText(token.expiresMs)], ['labels', labelText(token)],
  ]);
}

export function stateOf(token: EnrolmentToken, nowMs: number): string {
  if (token.revokedMs) return 'revoked';
  if (Number(token.expiresMs) <= nowMs) return 'expired';
  return token.used >= token.uses ? 'used up' : 'good';
}

function labelText({ labels }: EnrolmentToken): string {
  return Object.entries(labels).map(([key, value]) => `${key}=${value}`).join(',') || NONE;
}

function timeText(ms: bigint): string {
  return new Date(Number(ms)).toISOString();
}
