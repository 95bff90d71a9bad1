/** `npm run fuzz:gateway`: hostile messages by the thousand against a fresh coordinator and Redis on this machine. */
import { parseArgs } from 'node:util';
import { Progress } from '../progress';
import { type FuzzFigures, GatewayFuzz } from './gateway-fuzz';

const HELP = `Usage: npm run fuzz:gateway -- [options]

Sends hostile messages to a fresh coordinator beside a few honest agents, then tells whether it is up, what memory it
takes, whether the honest agents noticed, and whether anybody got in where they do not belong. Exits with 1 if not all is well.

  --messages N   hostile messages (1000000)
  --seed N       of chance (1)
  --tls          over TLS 1.3; also certificates and enrolment tokens of others, revoked, expired, used up, replayed, and hostile
                 requests for certificates
  --json         figures as JSON on standard output
  --help

  npm run fuzz:gateway -- --messages 20000 --json
`;

const well = (figures: FuzzFigures): boolean => figures.serverUp && figures.undisturbed === figures.honest && figures.acknowledged === figures.honest && figures.letIn.length === 0
  && figures.trespassers.length === 0 && figures.enrolled?.letIn === figures.enrolled?.uses;

async function main(): Promise<number> {
  const { values } = parseArgs({ options: { messages: { type: 'string', default: '1000000' }, seed: { type: 'string', default: '1' }, tls: { type: 'boolean', default: false }, json: { type: 'boolean', default: false }, help: { type: 'boolean', default: false } } });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const [messages, seed] = [Number(values.messages), Number(values.seed)];
  if (!Number.isSafeInteger(messages) || messages < 10) throw new Error(`--messages ${values.messages}: expected a whole number from 10`);
  if (!Number.isSafeInteger(seed)) throw new Error(`--seed ${values.seed}: expected a whole number`);
  const progress = new Progress();
  const fuzz = new GatewayFuzz({ messages, seed, tls: values.tls }, progress);
  const interrupted = new Promise<never>((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => reject(new Error(`ended by ${signal}`)));
  });
  try {
    const figures = await Promise.race([fuzz.run(), interrupted]);
    progress.endLine();
    if (values.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
    else for (const [name, value] of Object.entries(figures)) process.stdout.write(`${name.padEnd(16)} ${typeof value === 'object' ? JSON.stringify(value) : String(value)}\n`);
    return well(figures) ? 0 : 1;
  } finally {
    progress.endLine();
    await fuzz.stop();
  }
}

main().then((code) => { process.exitCode = code; }, (error: Error) => {
  process.stderr.write(`fuzz: ${error.message}\n`);
  process.exitCode = 2;
});
