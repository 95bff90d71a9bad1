/**
 * The first admin. Where tokens are asked for and there are no operators yet, the coordinator makes one of the name
 * `admin` and writes its token into a file that only its own user can read. It is written before Redis knows it, so
 * that no admin exists whose token nobody has; a file that is there already (a start cut short, or one provided) is
 * taken as it is. Of several coordinators that start at once one makes the admin.
 */
import { open, readFile, unlink } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { Logger, Service } from '@moefleet/runtime';
import { reasonOf } from '../errors';
import { isToken, newToken } from '../registry/operator-store';
import type { Registry } from '../registry/registry';

export interface FirstAdminOptions {
  requireOperatorToken: boolean;
  adminTokenFile: string;
}

const NAME = 'admin';

export class FirstAdmin implements Service {
  readonly name = 'first admin';

  constructor(private readonly registry: Registry, private readonly options: FirstAdminOptions, private readonly log: Logger) {}

  /** Throws where the file cannot be written or holds no token. */
  async start(): Promise<void> {
    const { operators, audit } = this.registry;
    if (!this.options.requireOperatorToken || (await operators.list()).length > 0) return;
    const file = resolve(this.options.adminTokenFile);
    const { token, isNew } = await tokenIn(file);
    await audit.record({ who: 'the coordinator', what: `operator ${NAME} created as the first admin`, after: { name: NAME, role: 'admin' } });
    if (await operators.create(NAME, 'admin', token, 0, 'the coordinator')) {
      this.log.warn({ file }, 'first admin made; its token is in this file: hand it to whoever runs the fleet, then remove the file');
    } else if (isNew) {
      await unlink(file);
    }
  }

  async stop(): Promise<void> {}
}

async function tokenIn(file: string): Promise<{ token: string; isNew: boolean }> {
  const token = newToken();
  try {
    const handle = await open(file, 'wx', 0o600);
    try {
      await handle.writeFile(`${token}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    return { token, isNew: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw new Error(`the first admin's token cannot be written to ${file}: ${reasonOf(error)}; name another place with --admin-token-file`, { cause: error });
  }
  const kept = (await readFile(file, 'utf8')).trim();
  if (!isToken(kept)) throw new Error(`${file}: holds no operator token; remove it, or name another file with --admin-token-file`);
  return { token: kept, isNew: false };
}
