/** `./dev jaeger`: makes sure that Jaeger is in the cache folder. */
import { buildJaeger, canBuildJaeger, findJaeger, HOW_TO_GET_JAEGER } from './jaeger-binary';

async function main(): Promise<number> {
  const found = findJaeger();
  if (found) {
    process.stdout.write(`${found}\n`);
    return 0;
  }
  if (!canBuildJaeger()) {
    process.stderr.write(`${HOW_TO_GET_JAEGER}\n`);
    return 1;
  }
  process.stdout.write(`${await buildJaeger((line) => process.stderr.write(`${line}\n`))}\n`);
  return 0;
}

main().then((code) => process.exit(code), (error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
